"""How fast the study is on this machine: milliseconds and seed-steps of every stage, beside the products they consist of.

`python -m benchmarks.bench` prints the figures and writes runs/bench.csv. A figure is a median over rounds; what is
compared in a ratio is timed in turn, round by round, so that a machine whose speed drifts drifts for both. On the CPU it
is this process's own CPU time, of one thread; on a GPU the time until the device is done, of steps and calls replayed from
CUDA graphs, with a ratio to the same ones by one (ratio_captured).
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import platform
import resource
import statistics
import tempfile
import time
import timeit
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest.mock import patch

import gymnasium as gym
import minari
import numpy as np
import pandas as pd
import torch
from minari.data_collector.episode_buffer import EpisodeBuffer
from torch.utils import benchmark

from aepo import files, settings
from aepo.core.models import VP, Behavior, Critic
from aepo.core.networks import EnergyNet, generator
from aepo.data import datasets, tasks
from aepo.data.datasets import Dataset
from aepo.learners import critics, policies
from aepo.learners.actor import Actor
from aepo.learners.behavior import behavior_learner
from aepo.learners.draws import Draws, Random, part
from aepo.learners.energies import SUPPORTED, Problem, energy_learner
from aepo.learners.support import sample_support
from aepo.learners.training import Learner, Steps
from aepo.methods import METHODS
from aepo.settings import Profile
from aepo.study import runs
from benchmarks.products import products_of

HOPPER = (11, 3)
STAGES = ("behavior", "critic", "energy-aepo", "energy-aepo-net", "energy-aepo-support", "energy-qgpo")
POLICIES = tuple(f"policy-{kind}" for kind in policies.MODELS)
PATIENCE = 12.0  # seconds of a median
MOST_ALONE = 8  # seeds that are also trained one beside another, without a stack
MOST_GROUPS = 256  # sets of the contrastive loss in a batch, each of `support` noised actions
QGPO = {  # the sizes of its public code: noise network 1.63M, twin Q 0.27M, energy 0.21M at state 11, action 3
    "behavior": {"width": 512, "depth": 7},
    "critic": {"width": 256, "depth": 3},
    "energy": {"width": 248, "depth": 4},
    "policy": {"width": 512, "depth": 7},
}
LARGEST = 16_384  # rows of a stack, seeds x batch, with the QGPO's sizes on a CPU


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


def with_networks(networks: str) -> Profile:
    """The profile quick with its own network sizes ("default") or those of "qgpo"."""
    sizes = {"default": {}, "qgpo": QGPO}[networks]
    return replace(
        settings.QUICK, **{stage: replace(getattr(settings.QUICK, stage), **own) for stage, own in sizes.items()}
    )


def synthetic(state_dim: int, action_dim: int, rows: int = 100_000, device: str = "cpu") -> Dataset:
    """Random transitions of given dimensions: speed does not depend on the values."""
    g = generator(0, "bench")
    state, action = torch.randn(rows, state_dim, generator=g), torch.rand(rows, action_dim, generator=g) * 2 - 1
    zeros = torch.zeros(rows)
    return Dataset(
        "bench", "0", state, action, torch.randn(rows, generator=g), state.roll(-1, 0), zeros, zeros,
        zeros.long(), state.mean(0), state.std(0), -torch.ones(action_dim), torch.ones(action_dim), None,
    ).to(device)  # fmt: skip


def networks_of(data: Dataset, seeds: Sequence[int], profile: Profile) -> tuple[Behavior, Critic]:
    """Untrained behavior model and critic."""
    behavior = behavior_learner(data, tuple(seeds), profile.behavior)[1]
    critic = critics.critic_learner(data, tuple(seeds), replace(profile.critic, discount=0.99))[1]
    return behavior, critic.requires_grad_(False)


def learner_of(stage: str, data: Dataset, seeds: Sequence[int], profile: Profile, batch: int) -> Learner:
    """The learner of a stage of STAGES or POLICIES with untrained networks below it."""
    seeds = tuple(seeds)
    if stage == "behavior":
        return behavior_learner(data, seeds, replace(profile.behavior, batch=batch))[0]
    if stage == "critic":
        return critics.critic_learner(data, seeds, replace(profile.critic, batch=batch, discount=0.99))[0]
    behavior, critic = networks_of(data, seeds, profile)
    groups = min(batch, MOST_GROUPS)
    energy = replace(profile.energy, batch=batch, groups=groups, target_batches=1, support_states=256)
    if stage in POLICIES:
        kind = stage.removeprefix("policy-")
        support = sample_support(behavior, data, seeds, energy) if kind in policies.RENEWED else None
        own, its_critic = replace(profile.policy, batch=batch), replace(profile.critic, discount=0.99)
        return policies.policy_learner(policies.Problem(kind, data, 1.0, own, its_critic, critic, support), seeds)[0]
    method = METHODS[stage.removeprefix("energy-")]
    support = sample_support(behavior, data, seeds, energy) if method.energy in SUPPORTED else None
    return energy_learner(Problem(data, behavior, critic, method, 1.0, energy, support), seeds)[0]


def draws_of(learner: Learner, steps: int) -> Draws:
    """The random inputs of `steps` steps of a learner, each seed's from its own generator."""
    return learner.draw(Random(learner.seeds, "bench", like=learner.trained[0], count=steps))


def medians(runs: Sequence[Callable[[], object]], device: str, rounds: int, seconds: float = PATIENCE) -> list[float]:
    """Median milliseconds of several functions, called in turn; fewer rounds, at least 2, where they take over `seconds`."""
    clock = time.process_time if device == "cpu" else benchmark.timer
    taken: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    start = time.perf_counter()
    for done in range(rounds):
        for run, times in zip(runs, taken, strict=True):
            times.append(1e3 * timeit.timeit(run, timer=clock, number=1))
        if done and time.perf_counter() - start > seconds:
            break
    return [statistics.median(times) for times in taken]


def bench_stage(
    stage: str,
    networks: str,
    seeds: int,
    batch: int,
    device: str,
    rounds: int,
    dims: tuple[int, int] = HOPPER,
    seconds: float = PATIENCE,
) -> Iterator[Row]:
    """A training step of S stacked seeds: its time, its share of the product rate, and over that of separate runs."""
    profile = with_networks(networks)
    data = synthetic(*dims, device=device)
    stacked = learner_of(stage, data, range(seeds), profile, batch)
    chunk = Steps(stacked)
    steps = 20 if device == "cuda" else 1 if seeds * batch > 4_096 else 4  # a capture needs more than its warm-up
    draws, rates = draws_of(stacked, steps), [1e-3] * steps
    one = part(draws, 0)
    chunk.step(one)
    products = products_of(lambda: chunk.step(one), device)
    alone = [learner_of(stage, data, [seed], profile, batch) for seed in range(seeds) if seeds <= MOST_ALONE]
    eager = [(Steps(learner, captured=False), draws_of(learner, steps)) for learner in alone]
    compared = [
        lambda: chunk.run(draws, rates),
        lambda: [products() for _ in rates],
        lambda: [own.run(inputs, rates) for own, inputs in eager],
    ]
    if chunk.captured:
        plain = Steps(learner_of(stage, data, range(seeds), profile, batch), captured=False)
        compared.append(lambda: plain.run(draws, rates))
    ms, product, separate, *same = (value / steps for value in medians(compared, device, rounds, seconds))
    row = functools.partial(Row, stage, device, networks, seeds, batch)
    yield row("ms", ms)
    yield row("seed_steps_per_s", 1e3 * seeds / ms)
    yield row("product_share", product / ms)
    if eager:
        yield row("ratio_eager", ms / separate)
    if chunk.graph:
        yield row("ratio_captured", ms / same[0])


def acting(
    networks: str, states: int, device: str = "cpu", solver_steps: int = 15, dims: tuple[int, int] = HOPPER
) -> list[Callable[[], object]]:
    """Two policy calls for `states` states of one seed, guided and not; on a GPU both also as they are, not captured."""
    profile = with_networks(networks)
    n, d = dims
    data = synthetic(n, d, device=device)
    behavior, _ = networks_of(data, [0], profile)
    energy = EnergyNet(1, n, d, profile.energy.width, profile.energy.depth, VP).to(device).requires_grad_(False)
    state, noise = data.state[:states].unsqueeze(0), torch.randn(1, states, 1, d, device=device)
    actors = [Actor(behavior, None, energy, 1.0, solver_steps, 1), Actor(behavior, None, None, 0.0, solver_steps, 1)]
    calls = [functools.partial(actor.act, state, noise) for actor in actors]
    if device == "cuda":
        calls += [torch.no_grad()(functools.partial(actor._act, state, noise)) for actor in actors]
    return calls


def bench_act(
    networks: str,
    states: int,
    device: str,
    rounds: int,
    solver_steps: int = 15,
    dims: tuple[int, int] = HOPPER,
    seconds: float = PATIENCE,
) -> Iterator[Row]:
    """The time of the calls of `acting`."""
    taken = medians(acting(networks, states, device, solver_steps, dims), device, rounds, seconds)
    for i, case in enumerate(("act-guided", "act-unguided")):
        yield Row(case, device, networks, 1, states, "ms", taken[i])
        if len(taken) > 2:
            yield Row(case, device, networks, 1, states, "ratio_captured", taken[i] / taken[i + 2])


def random_episode(number: int, length: int) -> EpisodeBuffer:
    """An episode of Hopper's dimensions, cut off at its end."""
    rng, (n, d) = np.random.default_rng(number), HOPPER
    return EpisodeBuffer(
        id=number,
        observations=rng.standard_normal((length + 1, n), dtype=np.float32),
        actions=rng.uniform(-1, 1, (length, d)).astype(np.float32),
        rewards=rng.standard_normal(length),
        terminations=np.zeros(length, dtype=bool),
        truncations=np.arange(length) == length - 1,
    )


def bench_load(rows: int = 1_000_000, episode: int = 1_000) -> Iterator[Row]:
    """First and later load of a recorded dataset of Hopper's dimensions, wall time, made for it in a temporary folder."""
    name = "aepo/bench/hopper-v0"
    task = replace(tasks.get("mujoco-hopper-medium-v0"), dataset_ids={"quick": name})
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, MINARI_DATASETS_PATH=folder):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is set to None", module="minari")
            minari.create_dataset_from_buffers(
                name,
                buffer=[random_episode(i, episode) for i in range(rows // episode)],
                env=gym.spec(task.env_id),
                algorithm_name="random numbers",
                author="AEPO study contributors",
                description="random numbers, to time loading",
                requirements=[],
            )
        for case in ("load-first", "load"):
            ms = 1e3 * timeit.timeit(lambda: datasets.load(task, "quick"), number=1)
            yield Row(case, "cpu", "", 0, rows, "ms", ms)


def machine(device: str) -> dict[str, str]:
    """What the figures were measured on: processor or GPU, threads, versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    name = torch.cuda.get_device_name() if device == "cuda" else processor
    versions = ", ".join(f"{package} {version}" for package, version in files.versions().items())
    return {"device": f"{device}: {name}", "threads": str(torch.get_num_threads()), "versions": versions}


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


def cases(options: argparse.Namespace, device: str) -> Iterator[tuple[tuple[str, str, int, int], Callable]]:
    """Every case that the options ask for, with what measures it; what takes minutes or gigabytes on a CPU is left out."""
    by = {"seconds": options.patience}
    for networks in options.networks:
        for states in options.states:
            act = functools.partial(bench_act, networks, states, device, options.rounds, **by)
            yield ("act-guided", networks, 1, states), act
        for stage in options.stages:
            for batch in options.batches:
                for seeds in options.seeds:
                    huge = device == "cpu" and networks == "qgpo" and seeds * batch > LARGEST
                    if huge or (stage == "energy-qgpo" and batch > MOST_GROUPS):
                        print(f"{stage:22} {networks:8} seeds {seeds:2}  batch {batch:7}  left out: too large")
                    else:
                        case = stage, networks, seeds, batch
                        yield case, functools.partial(bench_stage, *case, device, options.rounds, **by)
    if options.load:
        yield ("load", "", 0, options.load), functools.partial(bench_load, options.load)


def measured(path: Path, device: str) -> set[tuple[str, str, int, int]]:
    """The cases that bench.csv of this machine holds."""
    found, case = read(path, device), ["case", "networks", "seeds", "batch"]
    return set() if found is None else {*found[case].itertuples(index=False, name=None)}


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case, print it as it comes, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="*", default=STAGES, choices=STAGES + POLICIES)
    parser.add_argument("--networks", nargs="+", default=["default", "qgpo"], choices=["default", "qgpo"])
    parser.add_argument("--seeds", nargs="+", type=count, default=[1, 4, 8], help="numbers of stacked seeds")
    parser.add_argument("--batches", nargs="+", type=count, default=[256, 4_096])
    parser.add_argument("--states", nargs="+", type=count, default=[1, 10, 256], help="of a policy call")
    parser.add_argument("--load", type=int, default=1_000_000, help="transitions of the dataset to load; 0: none")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--rounds", type=count, default=15, help="at most so many rounds behind each median")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds after which a case begins no round")
    parser.add_argument("--seconds", type=float, default=math.inf, help="seconds after which no case begins")
    parser.add_argument("--missing", action="store_true", help="leave out what the output has of this machine")
    parser.add_argument("--output", type=Path, default=Path("runs/bench.csv"))
    options = parser.parse_args(arguments)
    try:
        device = runs.choose_device(options.device)
    except files.StudyError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    header = machine(device)
    print(_comments(header), end="")
    start, left, failed = time.monotonic(), 0, []
    done = measured(options.output, device) if options.missing else set()
    for case, measure in cases(options, device):
        if case in done:
            continue
        if time.monotonic() - start > options.seconds:
            left += 1
            continue
        try:
            rows = list(measure())
        except Exception as error:
            print(f"{' '.join(map(str, case))} failed: {type(error).__name__}: {error}", flush=True)
            failed.append(case[0])
            continue
        for row in rows:
            at = f"{row.case:22} {row.networks:8} seeds {row.seeds:2}  batch {row.batch:7}"
            print(f"{at}  {row.metric} {row.value:.3g}", flush=True)
        write(rows, options.output, header)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e6
    write([Row("all", device, ",".join(options.networks), 0, 0, "mb", memory)], options.output, header)
    print(f"peak memory {memory:.0f} MB; written to {options.output}")
    if left:
        print(f"left: {left} cases of the benchmark; --missing measures these alone")
    if failed:
        raise SystemExit(f"{len(failed)} cases failed: {', '.join(dict.fromkeys(failed))}")


if __name__ == "__main__":
    main()
