"""Snapshots of an energy network: which steps they are, that they change nothing else, and the rows that name them."""

from dataclasses import replace

import torch

from aepo import files, settings
from aepo.data.datasets import record
from aepo.study import policy, results, runs, stages


def energy_of(run, data, tiny, snapshots):
    behavior, critic = stages.train_behavior(run, data, tiny.behavior), stages.train_critic(run, data, tiny.critic)
    chosen = replace(tiny.energy, steps=60, snapshots=snapshots)
    return stages.train_energy(run, data, behavior, critic, "aepo", settings=chosen)


def own(module):
    return {key: value for key, value in module.state_dict().items() if not key.startswith("snapshots.")}


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def test_snapshots_are_earlier_states_of_the_same_training(run, data, tiny, monkeypatch):
    kept = energy_of(run, data, tiny, 3)
    stored = files.load_tensors(run.artifact("energy-aepo-b3"))[0]
    assert sum(key.startswith("snapshots.1.") for key in stored) == len(own(kept))
    plain = energy_of(replace(run, folder=run.folder.parent / "plain"), data, tiny, 1)
    assert same(own(plain), own(kept))
    seen, fit_chunk = [], stages.EnergyNet.keep_snapshots

    def watched(net, begun, steps):
        seen.append({key: value.clone() for key, value in own(net).items()})
        fit_chunk(net, begun, steps)

    monkeypatch.setattr(stages.EnergyNet, "keep_snapshots", watched)
    energy_of(replace(run, folder=run.folder.parent / "watched"), data, tiny, 3)
    chunk = run.profile.chunk
    ends = [min((i + 1) * chunk, 60) for i in range(len(seen))]
    for i, snapshot in enumerate(kept.snapshots, 1):
        first = next(k for k, end in enumerate(ends) if end >= 20 * i)
        assert same(own(snapshot), seen[first])


def test_the_best_of_each_seed_stands_beside_the_last(run, data, tiny):
    evaluation = {"episodes": 1, "solver_steps": 2, "guidance_scale": {"aepo": 1.0}}
    task = replace(run.task, horizon=30, settings={"energy": {"snapshots": 3}, "evaluation": evaluation})
    run = replace(run, task=task, methods=("aepo",))
    energy_of(run, data, tiny, 3)
    record(run.folder, data)
    frame = results.write_returns(run, data)
    best = frame[frame["checkpoint"] == "best of 3"]
    last = frame[(frame["checkpoint"] == "last") & (frame["method"] == "aepo")]
    assert list(best["seed"]) == list(last["seed"]) == list(run.seeds)
    every = [results.evaluate(run, "aepo", i).returns for i in (0, 1)]
    for i in range(len(run.seeds)):
        assert best["return"].iloc[i] == max(*(r[i, 0] for r in every), last["return"].iloc[i])
    table = results.score_table(frame)
    assert list(results.format_table(table)["method"]) == ["dataset", "aepo", "aepo, best of 3 snapshots"]
    assert "aepo" in runs.read_manifest(run.folder)["evaluation"]
    actor = policy.load_actor(run.folder, "aepo", run.seeds, 3.0, 1.0, 2, 1, "cpu", snapshot=0)
    assert same(own(actor.energy), own(energy_of(run, data, tiny, 3).snapshots[0]))


def test_only_full_keeps_them():
    assert settings.FULL.energy.snapshots == 3
    assert "snapshots" not in settings.as_dict(settings.QUICK.energy)
