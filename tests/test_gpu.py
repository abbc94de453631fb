"""Training and sampling on a GPU, where there is one; the same tests run on the CPU with a stand-in for its graphs."""

import copy
import functools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from aepo import settings
from aepo.core import networks
from aepo.core.models import VP, ClosedShift
from aepo.learners import capture, policies, training
from aepo.learners.actor import Actor
from aepo.learners.draws import part
from benchmarks import bench

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
ALL_STAGES = bench.STAGES + bench.POLICIES
SEEDS, STEPS, CHUNK = (0, 1), 100, 25
KINDS = ("plain", "energy", "jacobian", "net", "taylor", "cubature", "some-seeds", "best", "drawn", *policies.MODELS)


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def profile(device):
    """The sizes of the profile quick on a GPU, tiny ones on the CPU."""
    own = {} if device == "cuda" else {"width": 16}
    smoke = settings.SMOKE
    return replace(
        settings.QUICK,
        behavior=replace(settings.QUICK.behavior, **own, variance_times=5, variance_samples=64),
        critic=replace(settings.QUICK.critic, **own, discount=0.98),
        energy=replace(settings.QUICK.energy, **own, support=smoke.energy.support, support_steps=5),
        policy=replace(settings.QUICK.policy, **own),
    )


@pytest.fixture(scope="module")
def batch(device):
    return 256 if device == "cuda" else 8


@pytest.fixture(scope="module")
def data(device):
    return bench.synthetic(6, 2, rows=2_000, device=device)


@pytest.fixture
def capturing(device, monkeypatch):
    """On the CPU, where there are no graphs: one is captured without being run, and its replay runs what it was made of."""
    if device == "cpu":
        monkeypatch.setattr(capture, "graph", lambda run, name: SimpleNamespace(replay=run))
        monkeypatch.setattr(capture, "on_side_stream", lambda run: run())


def stepped(steps, learner, count=STEPS):
    """Sums of the info over the steps, drawn and run in chunks as a training does, and the rates of its cosine."""
    total = {}
    for index in range(count // CHUNK):
        random = bench.Random(learner.seeds, "gpu", index, like=learner.trained[0], count=CHUNK)
        info = steps.run(learner.draw(random), [1e-3 * (1 - (index * CHUNK + i) / count) for i in range(CHUNK)])
        total = {key: total.get(key, 0) + value for key, value in info.items()}
    return {key: value / count for key, value in total.items()}


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_captured_steps_are_those_of_eager_ones(stage, data, profile, batch, capturing, record_property):
    """Over 100 steps the means of losses are the same within 1e-4; how far parameters are apart is reported."""
    eager, captured = (bench.learner_of(stage, data, SEEDS, profile, batch) for _ in range(2))
    steps = training.Steps(captured, captured=True)
    expected, found = stepped(training.Steps(eager, captured=False), eager), stepped(steps, captured)
    assert steps.graph is not None, "it could not be captured"
    for key in expected:
        torch.testing.assert_close(
            found[key], expected[key], rtol=1e-4, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
        )
    pairs = zip(eager.trained, captured.trained, strict=True)
    apart = max((a - b).abs().max().item() for a, b in pairs)
    record_property("parameters_apart", apart)


def test_two_replays_see_different_noise(data, profile, batch, capturing):
    """At a rate of 0 the loss is one of the noise alone: other draws, other losses; the same draws, the same loss."""
    learner = bench.learner_of("behavior", data, SEEDS, profile, batch)
    steps = training.Steps(learner, captured=True)
    draws = bench.draws_of(learner, 8)
    steps.run(draws, [0.0] * 8)
    one, other, again = (steps.run(part(draws, slice(i, i + 1)), [0.0])["loss"] for i in (0, 1, 0))
    assert steps.graph is not None
    assert not torch.isclose(one, other).any()
    torch.testing.assert_close(one, again)
    eager = training.Steps(learner, captured=False).run(part(draws, slice(1, 2)), [0.0])["loss"]
    torch.testing.assert_close(other, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_a_seed_does_not_depend_on_its_neighbors(stage, data, profile, batch, capturing):
    """Its draws are the same bits, its losses over 100 captured steps the same but for rounding."""
    stacked, alone = (bench.learner_of(stage, data, seeds, profile, batch) for seeds in ((0, 1, 2), (1,)))
    together, own = bench.draws_of(stacked, 3), bench.draws_of(alone, 3)
    assert all(torch.equal(together[key][:, 1], own[key][:, 0]) for key in own)
    found, expected = (stepped(training.Steps(x, captured=True), x) for x in (stacked, alone))
    for key in expected:
        torch.testing.assert_close(found[key][1], expected[key][0], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def made(data, profile):
    """Untrained networks of the study's parts, of two seeds."""
    behavior, critic = bench.networks_of(data, SEEDS, profile)
    sizes = (len(SEEDS), 6, 2, profile.energy.width, 2)
    guides = {
        "energy": networks.EnergyNet(*sizes, VP),
        "jacobian": networks.EnergyNet(*sizes, VP, "jacobian", 5),
        "net": networks.ShiftNet(*sizes, 5),
    }
    for net in guides.values():
        networks.initialize(net.to(data.state), SEEDS, "guide").requires_grad_(False)
    return behavior, critic, guides


def actor_of(kind, data, profile, made):
    """An actor of each kind that the study has: of the behavior model, guided, of several samples, of an own policy."""
    behavior, critic, guides = made
    scale = torch.tensor([1.0, 2.0], device=data.state.device).view(2, 1, 1)
    if kind in policies.MODELS:
        support = bench.sample_support(behavior, data, SEEDS, replace(profile.energy, support_states=64))
        problem = policies.Problem(kind, data, 1.0, profile.policy, profile.critic, critic, support, times=5)
        return Actor(policies.policy_learner(problem, SEEDS)[1].average, None, None, 0.0, 5, 1)
    if kind in ("best", "drawn"):
        return Actor(behavior, critic, guides["energy"], scale, 5, 3, 0.5 if kind == "drawn" else 0.0)
    trusted = 5.0 * torch.tensor([[1.0], [0.0]], device=data.state.device)
    shifts = {"taylor": ("taylor", 5.0), "cubature": ("cubature", 5.0), "some-seeds": ("cubature", trusted)}
    guide = ClosedShift(shifts[kind][0], behavior, critic, shifts[kind][1]) if kind in shifts else guides.get(kind)
    return Actor(behavior, None, guide, scale if guide else 0.0, 5, 1, 0.0, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_sampler_acts_as_the_plain_one(kind, data, profile, made, capturing):
    """For numbers of states up to each power of two; each replay sees its own states and noise."""
    actor = actor_of(kind, data, profile, made)
    calls, seen = capture.CapturedCalls(actor._act, "the sampler"), []
    with torch.no_grad():
        for i, count in enumerate((4, 3, 4, 1, 60)):
            state = data.state[i : i + count].expand(2, -1, -1)
            noise = torch.randn(2, count, actor.draws, 2, device=state.device)
            seen.append(calls(state, noise))
            torch.testing.assert_close(seen[-1], actor._act(state, noise), rtol=1e-4, atol=1e-4)
    assert not calls.failed
    assert len(calls.captured) == 3
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_sampler_makes_lies_where_its_states_do(kind, data, profile, made):
    """A tensor made without a device would have to be copied to a GPU, which no capture allows."""
    actor = actor_of(kind, data, profile, made)
    state, noise = data.state[:3].expand(2, -1, -1), torch.randn(2, 3, actor.draws, 2, device=data.state.device)
    with torch.no_grad():
        actor._act(state, noise)  # which keeps the times
        with torch.device("meta"):
            assert actor._act(state, noise).device == data.state.device


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_what_a_step_makes_lies_where_its_draws_do(stage, data, profile, batch):
    learner = bench.learner_of(stage, data, SEEDS, profile, batch)
    steps, draws = training.Steps(learner, captured=False), part(bench.draws_of(learner, 1), 0)
    steps.step(draws)
    with torch.device("meta"):
        steps.step(draws)
    assert all(torch.isfinite(p).all() for p in learner.trained)


def test_a_training_that_goes_on_ends_as_an_unbroken_one(data, profile, batch, capturing, tmp_path, monkeypatch):
    """From a checkpoint, in a new graph; on the CPU with the same bytes."""
    monkeypatch.setattr(training, "Steps", functools.partial(training.Steps, captured=True))
    unbroken, resumed = (bench.learner_of("critic", data, SEEDS, profile, batch) for _ in range(2))
    log = training.fit(unbroken, 100, 1e-3, 25, checkpoints=tmp_path)
    sorted(tmp_path.iterdir())[-1].unlink()  # as if it had been killed in its last quarter
    again = training.fit(resumed, 100, 1e-3, 25, checkpoints=tmp_path)
    near = 0 if data.state.device.type == "cpu" else 1e-4
    for a, b in zip(unbroken.trained, resumed.trained, strict=True):
        torch.testing.assert_close(a, b, rtol=near, atol=near)
    assert log["step"].tolist() == again["step"].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_acts_as_its_copy_on_the_cpu_does(kind, data, profile, made):
    """The same networks, states and noise, wherever they lie."""
    actor = actor_of(kind, data, profile, made)
    moved = {name: copy.deepcopy(getattr(actor, name)) for name in ("behavior", "critic", "guide")}
    moved = {name: module if module is None else module.to("cpu") for name, module in moved.items()}
    if isinstance(getattr(moved["guide"], "beta", None), torch.Tensor):
        moved["guide"].beta = moved["guide"].beta.cpu()
    there = replace(actor, **moved, guidance_scale=torch.as_tensor(actor.guidance_scale).cpu())
    state, noise = data.state[:50].expand(2, -1, -1), torch.randn(2, 50, actor.draws, 2, device=data.state.device)
    found, expected = actor.act(state, noise).cpu(), there.act(state.cpu(), noise.cpu())
    differ = (found - expected).abs().amax(-1) > 1e-3
    assert differ.float().mean() <= (0.02 if kind in ("best", "drawn") else 0)  # where two samples are about as good
