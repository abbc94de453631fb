"""Weighted cloning and the shift as far as the critic is to be trusted, on problems whose answer is known."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from aepo import settings
from aepo.core.models import ClosedShift
from aepo.learners import policies
from aepo.learners.actor import AGREED, Acting, make_actor
from aepo.learners.draws import weighted_index
from aepo.methods import METHODS
from aepo.study import runs, stages

BETA, SLOPE, SPREAD = 1.5, 0.8, 0.4


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class LinearCritic(torch.nn.Module):
    """Q = slope . a of one seed."""

    def __init__(self, slope):
        super().__init__()
        self.slope, self.std = slope, torch.ones(1, 1)

    def advantage(self, state, action):
        return action @ self.slope.to(action)


class PriorBehavior(torch.nn.Module):
    """A behavior model that knows nothing but mean 0 and variance c at all times."""

    def __init__(self, variance, d, agreement=1.0):
        super().__init__()
        self.agreement = torch.full((1, 1), agreement, dtype=torch.float64)
        self.low, self.variance = torch.zeros(1, 1, d), torch.full((1, 2), variance, dtype=torch.float64)
        self.noise_net = lambda state, noisy, t: noisy


@pytest.fixture(scope="module")
def gaussian_data():
    action = SPREAD * normal(200_000, 1)
    return SimpleNamespace(action=action, state=torch.zeros(200_000, 1), standardize=lambda state: state)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_resampled_gaussian_data_are_the_tilted_gaussian(gaussian_data, share):
    """a ~ N(0, s^2) and A = g a: drawn anew by exp(beta A), actions have mean beta g s^2, and a share of them mean 0."""
    how = replace(settings.QUICK.policy, uniform_share=share, weight_cap=1e9)
    slope = torch.tensor([SLOPE], dtype=torch.float64)
    chance = policies.chances(gaussian_data, LinearCritic(slope), BETA, how)
    assert chance.shape == (1, 200_000)
    assert chance[0, -1] == 1
    uniform = torch.rand(1, 1, 100_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = gaussian_data.action[weighted_index(chance, uniform)[0, 0]]
    assert abs(drawn.mean() - (1 - share) * BETA * SLOPE * SPREAD**2) < 0.005
    if share in (0.0, 1.0):
        assert abs(drawn.std() - SPREAD) < 0.005


def test_weights_are_cut(gaussian_data):
    how = replace(settings.QUICK.policy, uniform_share=0.0, weight_cap=2.0)
    chance = policies.chances(gaussian_data, LinearCritic(torch.tensor([SLOPE], dtype=torch.float64)), 100.0, how)
    each = chance.diff(dim=1)
    top = gaussian_data.action[1:, 0] > 0.1
    assert torch.allclose(each[0, top], each[0, top].max().expand(int(top.sum())))


def test_draws_by_chance_reach_the_first_and_the_last():
    chance = torch.tensor([[0.25, 0.25, 1.0], [0.5, 0.75, 1.0]], dtype=torch.float64)
    uniform = torch.tensor([0.0, 0.3, 0.6, 1.0]).expand(5, 2, 4)
    drawn = weighted_index(chance, uniform)
    assert drawn.shape == (5, 2, 4)
    assert drawn[0].tolist() == [[0, 2, 2, 2], [0, 0, 1, 2]], "the second of the first row has no chance"


@pytest.mark.parametrize("kind", ["taylor", "cubature"])
@pytest.mark.parametrize("agreed", [[0.0, 18.9], [18.9, 19.0], [200.0, 0.0]])
def test_the_shift_is_followed_by_the_seeds_whose_twins_agree(agreed, kind):
    """Linear Q and N(0, c I): that of one beta, or 0, each seed for itself; nothing is computed where none agree."""
    d, c, trust = 3, 0.01, 4.0
    slope, behavior = normal(d, seed=4), PriorBehavior(c, d)
    behavior.agreement, behavior.variance = torch.tensor(agreed).double().unsqueeze(1), behavior.variance.repeat(2, 1)
    how = Acting(0.0, 1.0, 10, form=kind, trust=trust)
    guide = make_actor(METHODS["aepo-weighted"], behavior, LinearCritic(slope), None, how).guide
    if max(agreed) < AGREED:
        assert guide is None
        return
    state, zero, t = torch.zeros(2, 6, 2).double(), torch.zeros(2, 6, d).double(), torch.tensor(0.5).double()
    one = ClosedShift(kind, behavior, LinearCritic(slope), trust).shift(state, zero, t, zero)
    followed = torch.tensor(agreed).view(2, 1, 1) >= AGREED
    assert torch.allclose(guide.shift(state, zero, t, zero), one * followed, rtol=1e-9)
    if kind == "taylor":
        assert torch.allclose(one, (trust * c * slope).expand(2, 6, d), rtol=1e-9)


def test_a_shift_of_another_kind_is_refused():
    state, zero = torch.zeros(1, 2, 2).double(), torch.zeros(1, 2, 3).double()
    closed = ClosedShift("tailor", PriorBehavior(0.01, 3), LinearCritic(normal(3)), 1.0)
    with pytest.raises(ValueError, match="taylor or cubature, got 'tailor'"):
        closed.shift(state, zero, torch.tensor(0.5).double(), zero)


@pytest.mark.parametrize("d", [2, 6])
def test_cubature_tilts_to_first_order_and_saturates(d):
    """Along an axis: beta c where that is small; never beyond its points, sqrt(3) standard deviations or sqrt(d)."""
    slope, state, t = torch.eye(d, dtype=torch.float64)[0], torch.zeros(1, 1, 2).double(), torch.tensor(0.5).double()
    sizes = []
    for beta in (0.5, 40.0):
        closed = ClosedShift("cubature", PriorBehavior(0.01, d), LinearCritic(slope), torch.full((1, 1), beta).double())
        sizes.append(closed.shift(state, torch.zeros(1, 1, d).double(), t, torch.zeros(1, 1, d).double()).norm() / 0.1)
    assert sizes[0] == pytest.approx(0.05, rel=0.01)
    assert 1 < sizes[1] < max(3, d) ** 0.5


@pytest.mark.parametrize("kind", ["taylor", "cubature"])
def test_one_beta_for_all_states_is_that_number(kind):
    d = 3
    behavior, critic = PriorBehavior(0.04, d), LinearCritic(normal(d, seed=4))
    state, mean, t = torch.zeros(1, 6, 2).double(), 0.3 * normal(1, 6, d), torch.tensor(0.5, dtype=torch.float64)
    one, each = (
        ClosedShift(kind, behavior, critic, 2.0),
        ClosedShift(kind, behavior, critic, torch.full((1, 6), 2.0).double()),
    )
    assert torch.allclose(one.shift(state, mean, t, mean), each.shift(state, mean, t, mean), atol=1e-12)
    no_q = ClosedShift(kind, behavior, LinearCritic(torch.zeros(d).double()), torch.full((1, 1), 20.0).double())
    assert torch.equal(no_q.shift(state, mean, t, mean), torch.zeros_like(mean)), "a constant Q guides nowhere"


@pytest.mark.parametrize("apart", [0.01, 0.1, 1.0])
def test_twins_agree_as_far_as_they_share_their_slope(apart):
    """Q1 = (g + e) a and Q2 = (g - e) a: cov is g^2 - e^2 and var(Q1 - Q2) / 2 is 2 e^2, in units of the variance."""
    data = SimpleNamespace(state=torch.zeros(50, 2).double(), standardize=lambda state: state)
    slopes = torch.tensor([[2.0 + apart], [2.0 - apart]], dtype=torch.float64)
    critic = SimpleNamespace(q=lambda state, action: torch.stack([(action * g).sum(-1) for g in slopes]))
    found = policies.agreement(PriorBehavior(0.01, 1), critic, data, (0,))
    assert found.shape == (1, 1)
    assert found.item() == pytest.approx((4 - apart**2) / (2 * apart**2), rel=1e-9)
    critic.q = lambda state, action: torch.stack([action.sum(-1), -action.sum(-1)])
    assert policies.agreement(PriorBehavior(0.01, 1), critic, data, (0,)).item() == 0, "opposite: not followed at all"


def test_weighted_methods_share_one_model():
    assert runs.policy_stage("bc-weighted", 1.5) == runs.policy_stage("aepo-weighted", 1.5) == "policy-resampled-b1.5"
    assert runs.stages_of("aepo-weighted", 1.5) == {"behavior": "policy-resampled-b1.5", "critic": "critic"}
    assert {name for name, method in METHODS.items() if method.trusted} == set(settings.QUICK.evaluation.trust)


def test_a_weighted_policy_is_made_again_as_its_behavior_model_is(run, data, tiny):
    """Seeds that are added give what they give together; other steps of the behavior model train it anew."""
    made = {}
    for seeds in ((0,), (0, 1)):
        part = replace(run, seeds=seeds, methods=("aepo-weighted",))
        behavior = stages.train_behavior(part, data)
        made[seeds] = stages.train_policy(part, data, behavior, stages.train_critic(part, data), "aepo-weighted")
    whole = replace(run, folder=run.folder.with_name("whole"), seeds=(0, 1), methods=("aepo-weighted",))
    whole.folder.mkdir()
    behavior = stages.train_behavior(whole, data)
    together = stages.train_policy(whole, data, behavior, stages.train_critic(whole, data), "aepo-weighted")
    for key, value in together.state_dict().items():
        assert torch.allclose(value, made[0, 1].state_dict()[key], rtol=1e-2, atol=1e-3), key
    variance = together.average.variance
    assert variance.shape == (2, run.profile.behavior.variance_times)
    assert (variance < 1).any()
    assert (together.average.agreement > 0).all()
    assert (together.average.agreement != 1).all()
    changed = {"behavior": {"steps": run.profile.behavior.steps + 10}}
    longer = replace(whole, task=replace(whole.task, settings={**whole.task.settings, **changed}))
    behavior = stages.train_behavior(longer, data)
    anew = stages.train_policy(longer, data, behavior, stages.train_critic(longer, data), "aepo-weighted")
    assert not torch.equal(anew.average.variance, variance)


def test_trust_is_asked_for_and_a_differentiated_energy_has_beta():
    behavior, critic = PriorBehavior(0.04, 2), LinearCritic(torch.ones(2).double())
    with pytest.raises(ValueError, match="needs trust"):
        make_actor(METHODS["aepo-weighted"], behavior, critic, None, Acting(1.5, 1.0, 5))
    plain = make_actor(METHODS["aepo-weighted"], behavior, critic, None, Acting(1.5, 1.0, 5, differentiated=True))
    assert plain.guide.beta == 1.5
