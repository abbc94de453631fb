"""What makes the study fast: captured, compared and counted; never a time."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from aepo import files, settings
from aepo.core import fast, networks
from aepo.core.models import VP
from aepo.learners import capture, training
from aepo.learners.actor import Actor
from aepo.learners.draws import part
from benchmarks import bench, products

SYNCHRONISING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select")


@pytest.fixture(scope="module")
def tiny_profile():
    profile = settings.SMOKE
    small = {"width": 16, "batch": 8}
    return replace(
        profile,
        behavior=replace(profile.behavior, **small, variance_times=5),
        critic=replace(profile.critic, **small, discount=0.98),
        energy=replace(profile.energy, **small, target_batches=1),
    )


@pytest.fixture(scope="module")
def data():
    return bench.synthetic(4, 2, rows=200)


class NoSynchronisation(TorchDispatchMode):
    """Fails where an operation would make the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in SYNCHRONISING, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", bench.STAGES)
def test_no_step_waits_for_the_device(stage, data, tiny_profile):
    learner = bench.learner_of(stage, data, [0, 1], tiny_profile, 8)
    draws = part(bench.draws_of(learner, 1), 0)
    training.Steps(learner).step(draws)
    with NoSynchronisation():
        learner.loss(draws)[0].sum().backward()
        learner.after_step()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoSynchronisation():
        draws["index"].sum().item()


class RecordedGraph:
    """Stands in for a CUDA graph: `replay` does what was captured again, on the same input tensors."""

    captured: list = []  # noqa: RUF012

    def replay(self):
        steps, inputs, total = self.captured[-1]
        for key, value in steps.step(inputs).items():
            total[key].add_(value)


@pytest.mark.parametrize("stage", bench.STAGES)
def test_captured_steps_make_the_steps_of_eager_ones(stage, data, tiny_profile, monkeypatch):
    """The chunk logic of capture (warm-up, input copies, rates, sums) with a stand-in for the graph itself."""
    learners = [bench.learner_of(stage, data, [0, 1], tiny_profile, 8) for _ in range(2)]

    def recorded(self, draws, info):
        self.inputs = {key: value.clone() for key, value in draws.items()}
        self.total = {key: torch.zeros_like(value) for key, value in info.items()}
        self.graph = RecordedGraph()
        self.graph.captured.append((self, self.inputs, self.total))

    monkeypatch.setattr(training.Steps, "_capture", recorded)
    monkeypatch.setattr(capture, "on_side_stream", lambda run: run())
    plain, graph = (training.Steps(learner, captured=i == 1) for i, learner in enumerate(learners))
    for first in (0, 10):
        draws, rates = bench.draws_of(learners[0], 10), [1e-3 / (1 + first + i) for i in range(10)]
        expected, found = plain.run(draws, rates), graph.run(draws, rates)
        assert all(torch.allclose(expected[key], found[key], atol=1e-5) for key in expected)
    assert len({tuple(v.flatten().tolist()) for v in draws["index"]}) == 10
    for a, b in zip(learners[0].trained, learners[1].trained, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_failed_capture_goes_on_step_by_step_and_says_so(data, tiny_profile, monkeypatch, capsys):
    learner = bench.learner_of("behavior", data, [0], tiny_profile, 8)
    steps = training.Steps(learner, captured=True)

    class Refused:
        def __init__(self, graph):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", Refused)
    monkeypatch.setattr(capture, "on_side_stream", lambda run: run())
    total = steps.run(bench.draws_of(learner, 8), [1e-3] * 8)
    reference = bench.learner_of("behavior", data, [0], tiny_profile, 8)
    expected = training.Steps(reference).run(bench.draws_of(reference, 8), [1e-3] * 8)
    assert torch.allclose(total["loss"], expected["loss"], rtol=1e-5)
    assert "could not be captured" in capsys.readouterr().out


@pytest.mark.parametrize("stage", bench.STAGES)
def test_a_seed_does_not_depend_on_its_neighbors(stage, data, tiny_profile):
    """Over 100 steps a seed in a stack of three and the same seed alone have the same losses."""
    stacked, alone = (bench.learner_of(stage, data, seeds, tiny_profile, 8) for seeds in ([0, 1, 2], [1]))
    totals = [training.Steps(x).run(bench.draws_of(x, 100), [1e-3] * 100) for x in (stacked, alone)]
    for key in totals[1]:
        assert torch.allclose(totals[0][key][1], totals[1][key][0], rtol=1e-4, atol=1e-4), key


def test_unguided_sampling_asks_no_energy(data, tiny_profile):
    behavior, _ = bench.networks_of(data, [0], tiny_profile)
    calls = []

    class Energy:
        def gradient(self, state, action, t):
            calls.append(t)
            return torch.zeros_like(action)

    state, noise = data.state[:3].unsqueeze(0), torch.randn(1, 3, 1, 2)
    for scale, expected in ((0.0, 0), (1.0, 5)):
        calls.clear()
        Actor(behavior, None, Energy(), scale, 5, 1).act(state, noise)
        assert len(calls) == expected


def test_qgpo_networks_have_the_public_sizes():
    profile = bench.with_networks("qgpo")
    data = bench.synthetic(*bench.HOPPER, rows=64)
    behavior, critic = bench.networks_of(data, [0], profile)
    energy = bench.learner_of("energy-aepo", data, [0], profile, 8).module
    for module, millions in ((behavior.noise_net, 1.63), (critic.q, 0.27), (energy, 0.21)):
        assert sum(p.numel() for p in module.parameters()) == pytest.approx(1e6 * millions, rel=0.05)


@pytest.mark.parametrize("name", ["quick-other", "quick-", "fast"])
def test_unknown_profiles_are_refused(name):
    with pytest.raises(ValueError, match="unknown profile"):
        settings.get(name)


def test_the_comparison_with_the_public_code_asks_for_its_folder(tmp_path):
    command = [sys.executable, "-m", "benchmarks.time_qgpo", tmp_path]
    done = subprocess.run(command, cwd=files.project_root(), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path} has no importable diffusion_SDE")
    assert "Offline_RL_2D" in done.stderr
    assert not done.stdout
    command += ["--rounds", "0"]
    done = subprocess.run(command, cwd=files.project_root(), capture_output=True, text=True)
    assert (done.returncode, "above 0" in done.stderr) == (2, True)


def separately(net, x):
    """What a module of stacked networks computes, one network and one affine map at a time."""
    made = []
    for s in range(len(x)):
        h = x[s]
        for i, layer in enumerate(net.layers):
            z = h @ layer.weight[s] + layer.bias[s]
            a = F.silu(F.layer_norm(z, z.shape[-1:]) if net.norm else z)
            h = h + a if net.residual and i else a
        made.append(h @ net.out.weight[s] + net.out.bias[s])
    return torch.stack(made)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("outputs", [1, 3, 20])
@pytest.mark.parametrize("kind", [{"norm": True}, {"residual": True}])
def test_a_stack_computes_what_its_networks_compute_alone(seeds, outputs, kind):
    """Values, gradients and second derivatives are those of the plain formulas."""
    net = networks.MLP(seeds, 5, outputs, 24, 3, **kind)
    net = networks.initialize(net, range(seeds), "test").double()
    x = torch.randn(seeds, 7, 5, dtype=torch.float64, requires_grad=True)
    inputs = [x, *net.parameters()]
    direction = torch.randn(seeds, 7, outputs, dtype=torch.float64)
    found, expected = net(x), separately(net, x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y, inputs, direction, create_graph=True) for y in (found, expected)]
    torch.testing.assert_close(*gradients)
    curved = [torch.autograd.grad(g[0].square().sum(), inputs[:2], retain_graph=True) for g in gradients]
    torch.testing.assert_close(*curved)


@pytest.mark.parametrize(("seeds", "rows", "wide"), [(1, 8, True), (1, 7, False), (2, 8, False)])
def test_a_wide_layer_acts_by_onednn_with_the_same_numbers(seeds, rows, wide):
    """One seed's, of eight rows or more, without a graph; what is trained stays on baddbmm, whose bits results are of."""
    layer = networks.SeedLinear(seeds, 512, 256)
    torch.nn.init.normal_(layer.weight, std=0.05)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(seeds, rows, 512)
    with torch.no_grad(), products.ProductRecorder() as recorder:
        acted = layer(x)
    expected = torch.baddbmm(layer.bias, x, layer.weight)
    assert torch.equal(layer(x), expected)
    assert layer(x).requires_grad
    torch.testing.assert_close(acted, expected, rtol=1e-4, atol=1e-5)
    shapes = [[shape for shape, _ in pair] for pair in recorder.factors]
    assert shapes == ([[(rows, 512), (512, 256)]] if wide else [[(seeds, rows, 512), (seeds, 512, 256)]])


@pytest.mark.parametrize("gate", [True, False, "jacobian"])
def test_the_energy_gradient_without_a_graph_is_that_of_autograd(gate):
    net = networks.EnergyNet(2, 4, 3, 24, 3, VP, gate, 9)
    net = networks.initialize(net, range(2), "test").double()
    net.scale.copy_(torch.tensor([[2.0], [3.0]]))
    state, action = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    for t in (torch.tensor(0.3, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64)):
        traced = action.clone().requires_grad_(True)
        expected = torch.autograd.grad(net(state, traced, t).sum(), traced)[0]
        torch.testing.assert_close(net.gradient(state, action, t), expected)
    with pytest.raises(ValueError, match="without layer normalisation"):
        fast.input_gradient(networks.MLP(1, 2, 1, 8, 1, norm=True), torch.ones(1, 1, 2), slice(1))


class RepeatedCall:
    """Stands in for a CUDA graph of a sampler: `replay` runs what was captured again, on the same input tensors."""

    def __init__(self, run):
        self.replay = run


@pytest.fixture
def actor(data, tiny_profile):
    behavior, critic = bench.networks_of(data, [0, 1], tiny_profile)
    energy = networks.initialize(networks.EnergyNet(2, 4, 2, 16, 3, VP), [0, 1], "energy").requires_grad_(False)
    return Actor(behavior, critic, energy, 1.0, 5, 3)


def test_a_captured_sampler_acts_as_the_plain_one(data, actor, monkeypatch):
    """One capture for all numbers of states up to the next power of two; each replay sees its own states and noise."""
    monkeypatch.setattr(capture, "graph", lambda run, name: run() or RepeatedCall(run))
    monkeypatch.setattr(capture, "on_side_stream", lambda run: run())
    calls = capture.CapturedCalls(actor._act, "the sampler")
    for i, count in enumerate((4, 3, 4, 2, 3)):
        state, noise = data.state[i : i + count].expand(2, -1, -1), torch.randn(2, count, 3, 2)
        torch.testing.assert_close(calls(state, noise), actor.act(state, noise))
    assert len(calls.captured) == 2


def test_a_sampler_that_cannot_be_captured_acts_and_says_so_once(data, actor, monkeypatch, capsys):
    class Refused:
        def __init__(self, graph):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", Refused)
    monkeypatch.setattr(capture, "on_side_stream", lambda run: run())
    calls = capture.CapturedCalls(actor._act, "the sampler")
    state, noise = data.state[:3].expand(2, -1, -1), torch.randn(2, 3, 3, 2)
    for _ in range(2):
        assert torch.equal(calls(state, noise), actor.act(state, noise))
    assert capsys.readouterr().out.count("could not be captured") == 1


class OnOneDevice(TorchDispatchMode):
    """Fails where an operation waits for the device, or takes a tensor from another one."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in SYNCHRONISING, name
        assert all(x.device == self.device for x in args if isinstance(x, torch.Tensor)), name
        return func(*args, **(kwargs or {}))


def test_sampling_neither_waits_for_the_device_nor_copies_to_or_from_it(data, actor):
    """On the device that holds no numbers: to ask for one is an error there."""
    meta = torch.device("meta")
    state, noise = data.state[:3].expand(2, -1, -1).to(meta), torch.randn(2, 3, 3, 2, device=meta)
    moved = {name: getattr(actor, name).to(meta) for name in ("behavior", "critic", "guide")}
    actor = replace(actor, **moved)
    actor.act(state, noise)  # puts the times there
    with OnOneDevice(meta):
        assert actor.act(state, noise).shape == (2, 3, 2)
    with pytest.raises(AssertionError, match="_to_copy"), OnOneDevice(meta):
        data.state.to(meta)


def test_a_training_takes_one_thread_whatever_the_process_has(data, tiny_profile, tmp_path, capsys):
    """The threads of the process come back, and a checkpoint made with others is not gone on from."""
    seen = []
    learner = bench.learner_of("behavior", data, [0], tiny_profile, 8)
    watched = replace(learner, after_step=lambda: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    with training.threads(3):
        training.fit(watched, 4, 1e-3, 2, checkpoints=tmp_path)
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
    assert seen == [training.THREADS] * 4
    newest = sorted(tmp_path.iterdir())[-1]
    tensors, meta = files.load_tensors(newest)
    assert meta["threads"] == training.THREADS
    files.save_tensors(newest, tensors, {key: meta[key] for key in ("seeds", "chunks", "columns")} | {"threads": 2})
    training.fit(watched, 4, 1e-3, 2, checkpoints=tmp_path)
    assert "has other threads and is not used" in capsys.readouterr().out
    assert len(seen) == 6


def test_every_notebook_of_the_study_runs_on_one_thread():
    """Snakemake then runs as many at once as there are cores, and none fights for another's."""
    snakefile = (files.project_root() / "Snakefile").read_text()
    assert "OMP_NUM_THREADS={{threads}}" in snakefile
    rules = [part for part in re.split(r"^rule ", snakefile, flags=re.MULTILINE)[1:] if "run_papermill" in part]
    assert len(rules) == 1
    assert re.search(r"^    threads: 1$", rules[0], flags=re.MULTILINE)
