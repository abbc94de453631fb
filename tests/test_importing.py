"""D4RL's HDF5 files become Minari datasets with the same transitions."""

import json
import shutil
from dataclasses import replace

import h5py
import minari
import numpy as np
import pytest
import torch

from aepo import files
from aepo.data import datasets, importing, storage, tasks

TASK = replace(
    tasks.get("d4rl-hopper-medium-v2"),
    name="d4rl-test",
    dataset_ids=dict.fromkeys(("smoke", "quick", "full"), "aepo/d4rl/test-v0"),
    horizon=5,
    references=(-20.0, 3234.0),
)
ID = "aepo/d4rl/test-v0"
LENGTHS = (4, 1, 5, 3)  # steps of each episode; the file ends inside the last
ENDS = ("terminal", "timeout", "timeout", "cut")


def recording(seed=0):
    """What a recorder saw: every row with its true next observation, in D4RL's layout."""
    rng = np.random.default_rng(seed)
    rows = {key: [] for key in (*importing.NEEDED, *importing.OPTIONAL)}
    for steps, end in zip(LENGTHS, ENDS, strict=True):
        path = rng.standard_normal((steps + 1, 11)).astype(np.float32)
        rows["observations"].append(path[:-1])
        rows["next_observations"].append(path[1:])
        rows["actions"].append(rng.uniform(-1, 1, (steps, 3)).astype(np.float32))
        rows["rewards"].append(rng.standard_normal(steps).astype(np.float32))
        rows["terminals"].append((np.arange(steps) == steps - 1) & (end == "terminal"))
        rows["timeouts"].append((np.arange(steps) == steps - 1) & (end == "timeout"))
    return {key: np.concatenate(value) for key, value in rows.items()}


def write(path, rows, leave_out=()):
    with h5py.File(path, "w") as file:
        for key, value in rows.items():
            if key not in leave_out:
                file[key] = value
        file["infos/qpos"] = np.zeros((len(rows["rewards"]), 6))
        file["metadata/algorithm"] = "SAC"
    return path


def test_every_transition_is_kept_with_its_next_observation(folder):
    rows = recording()
    assert importing.import_hdf5(write(folder / "f.hdf5", rows), TASK, ID) == "aepo/d4rl/test-v0"
    data = datasets.load(TASK, "quick")
    for name, key in (("state", "observations"), ("next_state", "next_observations"), ("reward", "rewards")):
        assert torch.equal(getattr(data, name), torch.from_numpy(rows[key])), name
    assert torch.allclose(data.action, torch.from_numpy(rows["actions"]), atol=1e-6)
    assert torch.equal(data.terminated.bool(), torch.from_numpy(rows["terminals"]))
    assert torch.bincount(data.episode).tolist() == list(LENGTHS)
    ends = torch.tensor(LENGTHS).cumsum(0) - 1
    assert data.truncated[ends].tolist() == [0, 1, 1, 1]
    assert data.truncated.sum() == 3
    assert data.reference_scores == (-20.0, 3234.0)
    opened = minari.load_dataset("aepo/d4rl/test-v0")
    assert opened.recover_environment(eval_env=True).spec.max_episode_steps == 5
    assert np.array_equal(opened[0].observations[-1], rows["next_observations"][3])


def test_without_next_observations_the_last_step_before_a_timeout_is_dropped(folder):
    """As D4RL's qlearning_dataset does; an episode of one step that timed out is gone, a terminal step stays."""
    rows = recording()
    importing.import_hdf5(write(folder / "f.hdf5", rows, ["next_observations"]), TASK, ID)
    data = datasets.load(TASK, "quick")
    kept = np.array([0, 1, 2, 3, 5, 6, 7, 8, 10, 11])
    assert torch.bincount(data.episode).tolist() == [4, 4, 2]
    assert torch.equal(data.state, torch.from_numpy(rows["observations"][kept]))
    assert torch.equal(data.reward, torch.from_numpy(rows["rewards"][kept]))
    true = torch.from_numpy(rows["next_observations"][kept])
    living = data.terminated == 0
    assert torch.equal(data.next_state[living], true[living])
    assert torch.equal(data.next_state[3], data.state[3])
    assert data.truncated.nonzero().flatten().tolist() == [7, 9]


def test_without_timeouts_episodes_are_cut_at_the_horizon(folder):
    rows = recording()
    rows["terminals"][:] = False
    rows["terminals"][6] = True
    first, last = importing.segments({k: v for k, v in rows.items() if k in importing.NEEDED}, 5)
    assert [*zip(first.tolist(), last.tolist(), strict=True)] == [(0, 4), (5, 7), (7, 11)]


def test_next_observations_show_where_a_file_without_timeouts_was_cut(folder):
    rows = recording()
    importing.import_hdf5(write(folder / "f.hdf5", rows, ["timeouts"]), replace(TASK, horizon=100), ID)
    data = datasets.load(TASK, "quick")
    assert torch.bincount(data.episode).tolist() == list(LENGTHS)
    assert torch.equal(data.next_state, torch.from_numpy(rows["next_observations"]))


def test_a_step_whose_next_observation_is_not_the_next_row_ends_an_episode(folder, capsys):
    rows = recording()
    rows["next_observations"][1] += 1
    importing.import_hdf5(write(folder / "f.hdf5", rows), TASK, ID)
    data = datasets.load(TASK, "quick")
    assert torch.bincount(data.episode).tolist() == [2, 2, 1, 5, 3]
    assert torch.equal(data.next_state, torch.from_numpy(rows["next_observations"]))
    assert "1 episodes more than its flags tell" in capsys.readouterr().out


def test_an_existing_dataset_is_kept(folder, capsys):
    importing.import_hdf5(write(folder / "f.hdf5", recording()), TASK, ID)
    before = datasets.load(TASK, "quick").content_hash
    importing.import_hdf5(folder / "f.hdf5", TASK, ID)
    assert "is there already and is kept: it was imported from this file" in capsys.readouterr().out
    write(folder / "g.hdf5", recording(1))
    for path, clip, sentence in (
        ("g.hdf5", False, r"there already, imported from another file \(f.hdf5\): delete the folder \S+test-v0 first"),
        ("f.hdf5", True, "there already, imported without --clip: delete the folder"),
        ("none.hdf5", False, "there is no file"),
    ):
        with pytest.raises(files.StudyError, match=sentence):
            importing.import_hdf5(folder / path, TASK, ID, clip)
    assert datasets.load(TASK, "quick").content_hash == before
    assert storage.complete("aepo/d4rl/test-v0")
    shutil.rmtree(storage.root() / ID)
    importing.import_hdf5(folder / "g.hdf5", TASK, ID)
    assert datasets.load(TASK, "quick").content_hash != before


def test_a_dataset_that_names_no_file_is_not_taken_for_this_one(folder):
    importing.import_hdf5(write(folder / "f.hdf5", recording()), TASK, ID)
    path = storage.root() / ID / "data/metadata.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != importing.RECORD}))
    with pytest.raises(
        files.StudyError, match=r"imported from another file .which, it does not say.: delete the folder"
    ):
        importing.import_hdf5(folder / "f.hdf5", TASK, ID)


def test_only_tasks_of_files_are_imported_and_only_from_their_own(folder):
    path = write(folder / "f.hdf5", recording())
    for task, command in (("maze2d-umaze", "collect"), ("mujoco-hopper-expert-v0", "get")):
        with pytest.raises(files.StudyError, match=f"not imported: run `aepo data {command} {task}`"):
            importing.import_hdf5(path, tasks.get(task), ID)
    with pytest.raises(files.StudyError, match=r"from \S+f.hdf5 .* not imported: run .*, or name it as"):
        importing.import_hdf5(path, replace(TASK, file="/own.hdf5"), ID)
    assert not storage.complete(ID)
