"""How fast the study is on this machine: milliseconds and seed-steps of every stage, beside the products they consist of.

A figure is a median over rounds; what is compared in a ratio is timed in turn, round by round, so that a machine whose
speed drifts drifts for both. On the CPU it is the process's own CPU time, on a GPU device events.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pandas as pd
import torch
from minari.data_collector.episode_buffer import EpisodeBuffer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from aepo import files, settings
from aepo.core.models import Behavior, Critic
from aepo.core.networks import EnergyNet, generator
from aepo.data import datasets, tasks
from aepo.data.datasets import Dataset
from aepo.learners import critics
from aepo.learners.actor import Actor
from aepo.learners.behavior import behavior_learner
from aepo.learners.energies import SUPPORTED, energy_learner
from aepo.learners.support import sample_support
from aepo.learners.training import Draws, EagerSteps, Learner, adam, step, steps_of
from aepo.methods import METHODS
from aepo.settings import Profile
from aepo.study import stages

HOPPER = (11, 3)
STAGES = ("behavior", "critic", "energy-aepo", "energy-aepo-cubature", "energy-aepo-support", "energy-qgpo")
MOST_GROUPS = 256  # sets of the contrastive loss in a batch, each of `support` noised actions
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def synthetic(state_dim: int, action_dim: int, rows: int = 100_000, device: str = "cpu") -> Dataset:
    """Random transitions of given dimensions: speed does not depend on the values."""
    g = generator(0, "bench")
    state, action = torch.randn(rows, state_dim, generator=g), torch.rand(rows, action_dim, generator=g) * 2 - 1
    zeros = torch.zeros(rows)
    return Dataset(
        "bench", "0", state, action, torch.randn(rows, generator=g), state.roll(-1, 0), zeros, zeros,
        zeros.long(), state.mean(0), state.std(0), -torch.ones(action_dim), torch.ones(action_dim), None,
    ).to(device)  # fmt: skip


def learner_of(stage: str, data: Dataset, seeds: Sequence[int], profile: Profile, batch: int) -> Learner:
    """The learner of a stage of STAGES with untrained networks below it."""
    seeds = tuple(seeds)
    if stage == "behavior":
        return behavior_learner(data, seeds, replace(profile.behavior, batch=batch))[0]
    if stage == "critic":
        return critics.critic_learner(data, seeds, replace(profile.critic, batch=batch))[0]
    behavior, critic = networks_of(data, seeds, profile)
    method = METHODS[stage.removeprefix("energy-")]
    groups = min(batch, MOST_GROUPS)
    energy = replace(profile.energy, batch=batch, groups=groups, target_batches=1, support_states=256)
    support = sample_support(behavior, data, seeds, energy) if method.energy in SUPPORTED else None
    return energy_learner(data, behavior, critic, method, 1.0, seeds, energy, support=support)[0]


def networks_of(data: Dataset, seeds: Sequence[int], profile: Profile) -> tuple[Behavior, Critic]:
    """Untrained behavior model and critic."""
    behavior = behavior_learner(data, tuple(seeds), profile.behavior)[1]
    critic = critics.critic_learner(data, tuple(seeds), profile.critic)[1]
    return behavior, critic.requires_grad_(False)


class _Recorder(TorchDispatchMode):
    """Notes the matrix products of what runs under it: name, shapes and strides of the factors."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Callable, list[tuple]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            factors = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
            self.calls.append((torch.bmm if factors[0].ndim == 3 else torch.mm, [_layout(x) for x in factors]))
        return func(*args, **(kwargs or {}))


def _layout(x: Tensor) -> tuple:
    return tuple(x.shape), tuple(x.stride()), x.dtype, x.device


def products_of(run: Callable[[], object]) -> tuple[Callable[[], None], float]:
    """A function that makes the matrix products of `run` again, sizes and layouts the same, and nothing else; their FLOP."""
    with _Recorder() as recorder:
        run()
    made: dict[tuple, Tensor] = {}
    for _, layouts in recorder.calls:
        for shape, stride, dtype, device in layouts:
            key = (shape, stride)
            reach = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
            made.setdefault(key, torch.randn(reach, dtype=dtype, device=device).as_strided(shape, stride))
    calls = [(f, [made[shape, stride] for shape, stride, _, _ in layouts]) for f, layouts in recorder.calls]

    @torch.no_grad()
    def again() -> None:
        for product, factors in calls:
            product(*factors)

    return again, sum(2 * a.numel() * b.shape[-1] for _, (a, b) in calls)


def timed(run: Callable[[], object], device: str) -> float:
    """Milliseconds of one call: CPU time of this process, or between two events of the GPU."""
    if device == "cpu":
        start = time.process_time()
        run()
        return 1e3 * (time.process_time() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)


def medians(runs: Sequence[Callable[[], object]], device: str, rounds: int, seconds: float = 12.0) -> list[float]:
    """Median milliseconds of several functions, called in turn; fewer rounds, at least 2, where they take over `seconds`."""
    taken: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    start = time.perf_counter()
    for done in range(rounds):
        for run, times in zip(runs, taken, strict=True):
            times.append(timed(run, device))
        if done and time.perf_counter() - start > seconds:
            break
    return [statistics.median(times) for times in taken]


def draws_of(learner: Learner, steps: int) -> Draws:
    """The random inputs of `steps` steps of a learner, each seed's from its own generator."""
    device = learner.trained[0].device
    return learner.draw([generator(seed, "bench", device=device) for seed in learner.seeds], steps)


class VmapSteps:
    """The same step as `torch.func.vmap` over single-seed networks, with one Adam over the stacked parameters."""

    def __init__(self, learners: Sequence[Learner]):
        first = learners[0]

        class Loss(nn.Module):
            def __init__(self):
                super().__init__()
                self.module = first.module

            def forward(self, draws: Draws) -> Tensor:
                return first.loss(draws)[0].sum()

        self.loss = Loss()
        names = {id(p): name for name, p in self.loss.named_parameters()}
        self.names = [names[id(p)] for p in first.trained]
        self.stacked = [
            torch.stack([learner.trained[i].detach() for learner in learners]).requires_grad_(True)
            for i in range(len(first.trained))
        ]
        self.optimizer = torch.optim.Adam(self.stacked, lr=1e-3, fused=True)

    def step(self, draws: Draws) -> None:
        """One step; draws `(S, ...)` of single-seed draws."""

        def single(parameters: list[Tensor], inputs: Draws) -> Tensor:
            return torch.func.functional_call(self.loss, dict(zip(self.names, parameters, strict=True)), (inputs,))

        gradients = torch.func.vmap(torch.func.grad(single))(self.stacked, draws)
        for parameter, gradient in zip(self.stacked, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()


@dataclass(frozen=True)
class Row:
    """One line of bench.csv."""

    case: str
    device: str
    networks: str
    seeds: int
    batch: int
    metric: str
    value: float


def bench_stage(
    stage: str, networks: str, seeds: int, batch: int, device: str, rounds: int, dims: tuple[int, int] = HOPPER
) -> Iterator[Row]:
    """A training step of S stacked seeds: its time, its share of the product rate, and against two other ways."""
    profile = settings.with_networks(settings.QUICK, networks)
    data = synthetic(*dims, device=device)
    stacked = learner_of(stage, data, range(seeds), profile, batch)
    optimizer = adam(stacked, 1e-3)
    steps = 1 if seeds * batch > 4_096 else 4
    draws = draws_of(stacked, steps)
    one = {key: value[0] for key, value in draws.items()}
    rates = [1e-3] * steps
    for _ in range(2):
        step(stacked, optimizer, one)
    products, work = products_of(lambda: step(stacked, optimizer, one))
    chunk = steps_of(stacked, optimizer)
    alone = [learner_of(stage, data, [seed], profile, batch) for seed in range(seeds)]
    eager = [EagerSteps(learner, adam(learner, 1e-3)) for learner in alone]
    own = [draws_of(learner, steps) for learner in alone]
    chunk.run(draws, rates)

    def separately() -> None:
        for steps, inputs in zip(eager, own, strict=True):
            steps.run(inputs, rates)

    def product_chunk() -> None:
        for _ in rates:
            products()

    compared = [lambda: chunk.run(draws, rates), product_chunk, separately]
    try:
        vmapped = VmapSteps(alone)
        inputs = {key: torch.stack([own[s][key][0] for s in range(seeds)]) for key in one}
        vmapped.step(inputs)
        compared.append(lambda: [vmapped.step(inputs) for _ in rates])
    except RuntimeError as error:  # an operation without a batching rule
        print(f"{stage}: torch.func.vmap cannot run this step ({textwrap.shorten(str(error), 70)})")
    ms, product, separate, *vmap = (value / len(rates) for value in medians(compared, device, rounds))
    row = lambda metric, value: Row(stage, device, networks, seeds, batch, metric, value)  # noqa: E731
    yield row("ms", ms)
    yield row("seed_steps_per_s", 1e3 * seeds / ms)
    yield row("product_share", product / ms)
    yield row("product_gflops", work / product / 1e6)
    yield row("ratio_eager", ms / separate)
    if vmap:
        yield row("ratio_vmap", ms / vmap[0])


def acting(
    networks: str, states: int, device: str = "cpu", solver_steps: int = 15, dims: tuple[int, int] = HOPPER
) -> list[Callable[[], object]]:
    """Two policy calls for `states` states of one seed, guided and not."""
    profile = settings.with_networks(settings.QUICK, networks)
    n, d = dims
    data = synthetic(n, d, device=device)
    behavior, _ = networks_of(data, [0], profile)
    energy = EnergyNet(1, n, d, profile.energy.width, profile.energy.depth, stages.VP).to(device).requires_grad_(False)
    state, noise = data.state[:states].unsqueeze(0), torch.randn(1, states, 1, d, device=device)
    guided = Actor(behavior, None, energy, 1.0, solver_steps, 1)
    unguided = Actor(behavior, None, None, 0.0, solver_steps, 1)
    return [lambda: guided.act(state, noise), lambda: unguided.act(state, noise)]


def bench_act(
    networks: str, states: int, device: str, rounds: int, solver_steps: int = 15, dims: tuple[int, int] = HOPPER
) -> Iterator[Row]:
    """The time of the calls of `acting`."""
    both = acting(networks, states, device, solver_steps, dims)
    for case, ms in zip(("act-guided", "act-unguided"), medians(both, device, rounds), strict=True):
        yield Row(case, device, networks, 1, states, "ms", ms)


def peak_memory(device: str) -> float:
    """Greatest memory so far in MB: resident size of this process, or allocated on the GPU."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated() / 1e6


def bench_load(rows: int = 1_000_000, episode: int = 1_000) -> Iterator[Row]:
    """First and later load of a recorded dataset of Hopper's dimensions, wall time, made for it in a temporary folder."""
    n, d = HOPPER
    with (
        tempfile.TemporaryDirectory() as folder,
        _environment("MINARI_DATASETS_PATH", folder),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*is set to None", module="minari")
        task = replace(tasks.get("mujoco-hopper-medium-v0"), dataset_ids={"quick": "aepo/bench/hopper-v0"})
        rng = np.random.default_rng(0)
        minari.create_dataset_from_buffers(
            "aepo/bench/hopper-v0",
            buffer=[
                EpisodeBuffer(
                    id=i,
                    observations=rng.standard_normal((episode + 1, n), dtype=np.float32),
                    actions=rng.uniform(-1, 1, (episode, d)).astype(np.float32),
                    rewards=rng.standard_normal(episode),
                    terminations=np.zeros(episode, dtype=bool),
                    truncations=np.arange(episode) == episode - 1,
                )
                for i in range(rows // episode)
            ],
            env=gym.spec(task.env_id),
            algorithm_name="random numbers",
            author="AEPO study contributors",
            description="random numbers, to time loading",
            requirements=[],
        )
        for case in ("load-first", "load"):
            start = time.perf_counter()
            datasets.load(task, "quick")
            yield Row(case, "cpu", "", 0, rows, "ms", 1e3 * (time.perf_counter() - start))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def machine(device: str) -> dict[str, str]:
    """What the figures were measured on: processor or GPU, threads, versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    versions = ", ".join(f"{package} {version}" for package, version in files.versions().items())
    return {"device": f"{device}: {name}", "threads": str(torch.get_num_threads()), "versions": versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _comments(header: Mapping[str, str]) -> str:
    return "".join(f"# {key}: {value}\n" for key, value in header.items())


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """One line a case, one column a metric."""
    return _wide(pd.DataFrame([asdict(row) for row in rows]))


def _wide(frame: pd.DataFrame) -> pd.DataFrame:
    keys = [key for key in frame if key not in ("metric", "value")]
    return frame.pivot_table(index=keys, columns="metric", values="value", sort=False).reset_index()


def read(path: Path, device: str) -> pd.DataFrame | None:
    """bench.csv as a `table`; None where there is none, or it was written on another machine, threads or versions."""
    if not path.exists() or not path.read_text().startswith(_comments(machine(device))):
        return None
    return _wide(pd.read_csv(path, comment="#", keep_default_na=False))


def write(rows: Sequence[Row], path: Path, header: Mapping[str, str]) -> None:
    """bench.csv, atomically: the machine as comment lines, one row a figure; earlier rows of the same machine stay."""
    comments = _comments(header)
    frame = pd.DataFrame([asdict(row) for row in rows])
    if path.exists() and path.read_text().startswith(comments):
        frame = pd.concat([pd.read_csv(path, comment="#", keep_default_na=False), frame])
        frame = frame.drop_duplicates([key for key in frame if key != "value"], keep="last")
    with files.atomic_path(path) as temporary:
        temporary.write_text(comments + frame.to_csv(index=False))
