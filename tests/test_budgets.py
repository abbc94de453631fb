"""runs/budgets.csv: the evidence for discounts and budgets that docs and README speak of."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
import torch

from aepo import settings
from aepo.core import posterior
from aepo.learners import discount
from aepo.learners.draws import Random
from aepo.study import ablations, results, statistics

ROOT = Path(__file__).parents[1]
LOOKED_AT = ["maze2d-umaze", "local-pointmaze-umaze", "local-halfcheetah-mixed", "local-hopper-medium-expert"]
TEN = [*LOOKED_AT, "maze2d-medium", "local-pointmaze-medium", "local-pointmaze-large", "local-ant-medium-expert"]
TEN += ["local-pusher-mixed", "local-swimmer-mixed"]


def script(name):
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


budgets_script, cost_script = script("budgets"), script("cost")


@pytest.fixture(scope="module")
def budgets():
    return pd.read_csv(ROOT / "runs" / "budgets.csv")


def test_the_discounts_are_those_of_the_rule(budgets):
    """The least with the agreement asked for, or the greatest there is."""
    wide = budgets[budgets["stage"] == "critic"].pivot(index="task", columns="metric", values="value")
    assert len(wide) >= 10
    assert set(wide["discount"]) <= {*discount.DISCOUNTS}
    agreed = (wide["agreement"] >= discount.AGREEMENT) | (wide["discount"] == discount.DISCOUNTS[-1])
    assert agreed.all(), wide[~agreed]


def test_the_steps_are_those_of_the_profile(budgets):
    own = budgets[budgets["profile"] == "study"].groupby("stage")["steps"].unique()
    study = settings.STUDY
    assert own["behavior"].tolist() == [study.behavior.steps]
    assert own["critic"].tolist() == [study.critic.steps]
    assert own["policy-td3bc"].tolist() == [study.policy.critic_steps]
    assert own["energy-qgpo-b3"].tolist() == [study.energy.steps]


def test_cloning_returns_what_the_data_return(budgets):
    """At most 15% or 5 points below, on eight of ten tasks; where two tiers are mixed it is not, and with one tier it is."""
    wide = budgets[budgets["stage"] == "behavior"].pivot(index="task", columns="metric", values="value")
    short = wide["score of bc"] < wide["score of dataset"] - (0.15 * wide["score of dataset"]).clip(lower=5)
    assert wide.loc[TEN, ["score of bc", "score of dataset"]].notna().all(axis=None)
    low = wide["score of bc-low-noise"] >= 0.85 * wide["score of dataset"]
    for robot in ("hopper", "walker2d"):
        assert short[f"local-{robot}-medium-expert"]
        assert not short[f"local-{robot}-expert"]
    assert low["local-halfcheetah-expert"]
    assert short["local-halfcheetah-mixed"]
    assert (~short[TEN]).sum() >= 8


MISSED = "local-pointmaze-medium-dense"  # by .0001: a defect that stands in docs/methods.md


def contrastive(budgets):
    return budgets[budgets["stage"] == "energy-qgpo-b3"].pivot(index="task", columns="metric", values="value")


@pytest.mark.parametrize(
    "missed", [False, pytest.param(True, marks=pytest.mark.xfail(strict=True, reason="more steps are to be tried"))]
)
def test_the_contrastive_loss_is_near_the_least_that_is_known(budgets, missed):
    wide = contrastive(budgets)
    wide = wide.loc[[MISSED]] if missed else wide.drop(index=MISSED)
    assert (wide["loss"] < wide["least loss"] + 0.06).all(), wide


def test_the_contrastive_energy_is_as_good_as_its_labels_allow(budgets):
    """Chance is log 16 = 2.7726; most of t says next to nothing of the clean action, so that no energy is far below it."""
    wide = contrastive(budgets)
    assert len(wide) >= 8
    assert "local-halfcheetah-medium-expert" in wide.index
    assert (wide["least loss"] < 2.7726).all()
    assert (wide["least loss"] > 2.47).all(), "log 16 - .3 is out of reach of every estimate"


class Gaussian(torch.nn.Module):
    """A behavior model of a ~ N(0, s^2) in every state, with its exact noise and variance."""

    def __init__(self, s, d):
        super().__init__()
        times = posterior.variance_times(2_001, dtype=torch.float64)
        alpha, sigma = budgets_script.VP.alpha(times), budgets_script.VP.sigma(times)
        self.s, self.low = s, torch.zeros(1, 1, d)
        self.variance = ((s * sigma) ** 2 / ((s * alpha) ** 2 + sigma**2)).unsqueeze(0)

    def noise_net(self, state, noisy, t):
        alpha, sigma = (f(t).unsqueeze(-1) for f in (budgets_script.VP.alpha, budgets_script.VP.sigma))
        return sigma * noisy / ((self.s * alpha) ** 2 + sigma**2)

    def sample(self, states, noise, steps):
        return self.s * noise


@pytest.mark.parametrize("time", [0.001, 0.2, 1.0])
def test_the_least_loss_is_that_of_the_exact_energy(time):
    """Gaussian actions, Q = g a: E = beta g m + what does not depend on a_t."""
    s, slope, beta = 0.2, torch.tensor([3.0, -2.0]).double(), 3.0
    critic = torch.nn.Module()
    critic.advantage = lambda state, action: action @ slope
    state, t = torch.zeros(1, 200, 3).double(), torch.tensor([time], dtype=torch.float64)
    found = budgets_script.least_losses(Gaussian(s, 2), critic, state, beta, t, Random((0,), "x", like=state))
    actions = s * torch.randn(40_000, 16, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alpha, sigma = budgets_script.VP.alpha(t), budgets_script.VP.sigma(t)
    noisy = alpha * actions + sigma * torch.randn(actions.shape, generator=torch.Generator().manual_seed(2)).double()
    mean = alpha * s**2 * noisy / ((s * alpha) ** 2 + sigma**2)
    exact = budgets_script.cross_entropy(beta * actions @ slope, beta * mean @ slope)
    assert found.item() == pytest.approx(exact.item(), abs=0.05)
    assert exact < 2.2 if time < 0.1 else exact > 2.6


def test_a_training_costs_the_seconds_of_its_stages(budgets):
    own = budgets[(budgets["task"] == "local-pointmaze-umaze") & (budgets["metric"] == "seconds")]
    seconds = own.set_index("stage")["value"]
    made_of = {
        "bc": ["behavior"],
        "aepo-shift": ["behavior", "critic"],
        "qgpo": ["behavior", "critic", "energy-qgpo-b3"],
        "aepo": ["behavior", "critic", "energy-aepo-b3"],
        "aepo-weighted": ["critic", "policy-resampled-b1.5"],
        "td3bc": ["policy-td3bc"],
        "qipo-flow": ["behavior", "critic", "policy-qipo-flow-b3", "policy-qipo-flow-b3-round1"],
    }
    for method, stages in made_of.items():
        assert cost_script.training_seconds(own, method) == pytest.approx(seconds[stages].sum()), method


MOVED = {  # docs/results.md says how
    ("critic", "maze2d-umaze", "aepo-cubature"),
    ("behavior", "local-halfcheetah-mixed", "aepo-cubature"),
    ("behavior", "local-halfcheetah-mixed", "bc-weighted"),
}


def test_twice_the_steps_change_few_scores():
    """On tasks that settings were looked at: the interval with twice the steps meets that of the run, but for three."""
    rows = results.read_results(ROOT / "runs" / "results.csv")
    rows, found = rows[rows["profile"] == "study"], {}
    for variant in (v for v in ablations.VARIANTS if v.question in ablations.STEPS and v.times == 2):
        for (task, method), own in rows[rows["variant"] == variant.name].groupby(["task", "method"]):
            before = rows[(rows["task"] == task) & (rows["method"] == method) & (rows["variant"] == "")]
            grids = (each.pivot(index="seed", columns="episode", values="score").to_numpy() for each in (before, own))
            (_, low, high), (_, own_low, own_high) = map(statistics.nested_bootstrap, grids)
            found[variant.name.split()[0], task, method] = own_low <= high and low <= own_high
    assert {task for _, task, _ in found} >= {
        "maze2d-umaze",
        "local-hopper-medium-expert",
        "local-halfcheetah-mixed",
        "local-pointmaze-umaze",
    }
    assert {key for key, meets in found.items() if not meets} == MOVED
    assert len(found) == 28
