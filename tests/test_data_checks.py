"""Checks at the door: each kind of bad data has its sentence, and nothing is written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from minari.serialization import serialize_space
from samples import HOPPER, ID, at, d4rl, entry, forbidden, hdf5, hopper, other, rows, written

from aepo import files
from aepo.data import datasets, importing, storage
from aepo.settings import DataSettings

pytestmark = pytest.mark.usefixtures("folder")


def truncate(path):
    with open(path, "rb+") as file:
        file.truncate(path.stat().st_size // 2)


BAD_ROWS = {
    "missing key": (lambda found: found.pop("terminals"), "has no 'terminals': it must hold observations, actions"),
    "lengths": (other("rewards", np.zeros(39)), r"differ in length \(observations 40, actions 40, rewards 39"),
    "nan": (
        entry("observations", (7, 2), np.nan),
        r"observations holds NaN or infinity \(1 numbers, first at step 7\)",
    ),
    "infinity": (entry("rewards", 31, -np.inf), r"rewards holds NaN or infinity \(1 numbers, first at step 31\)"),
    "outside": (
        entry("actions", ([3, 9], 1), 1.5),
        "2 of 40 actions are outside the action box, by 0.5 at most: .*--clip",
    ),
    "discrete": (other("actions", np.zeros(40, np.int64)), r"actions of type int64 and shape \(\): .* not discrete"),
    "images": (
        other("observations", np.zeros((40, 9, 9, 3), np.uint8)),
        "type uint8 and shape .9, 9, 3.: .* not images",
    ),
    "empty": (lambda found: found.update({k: v[:0] for k, v in found.items()}), "is empty: it holds no episode"),
    "other task": (
        other("observations", np.zeros((40, 17), np.float32)),
        "has 17 observations and 3 actions, task d4rl-hopper-medium-v2 11 and 3: it belongs to another task",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_d4rl_file(folder, change, sentence):
    d4rl(folder / "bad.hdf5", change)
    with pytest.raises(files.StudyError, match=sentence) as raised:
        importing.import_hdf5(folder / "bad.hdf5", HOPPER, ID)
    assert "bad.hdf5" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert written(folder) == {}


def test_a_file_that_is_none(folder, monkeypatch):
    path = folder / "bad.hdf5"
    for make, sentence in (
        (lambda: None, "there is no file"),
        (lambda: path.write_text("state,action"), "is not an HDF5 file"),
        (lambda: (d4rl(path), truncate(path)), "bad.hdf5 is truncated"),
        (lambda: monkeypatch.setattr(h5py, "File", forbidden), "cannot be read: no permission"),
        (lambda: (path.unlink(), path.mkdir()), "bad.hdf5 is a folder, not an HDF5 file: name a file in it"),
    ):
        make()
        with pytest.raises(files.StudyError, match=sentence):
            importing.import_hdf5(path, HOPPER, ID)
    assert written(folder) == {}


def test_actions_are_clipped_on_request_only(folder):
    d4rl(folder / "wide.hdf5", entry("actions", ([3, 9], 1), 1.5))
    importing.import_hdf5(folder / "wide.hdf5", HOPPER, ID, clip=True)
    kept = json.loads((storage.root() / ID / "data/metadata.json").read_text())[importing.RECORD]
    assert kept["clip"] is True
    assert kept["said"][-1] == "2 of 40 actions are outside the action box, by 0.5 at most, and were moved into it"
    data = datasets.load(HOPPER, "full")
    assert data.action[[3, 9], 1].tolist() == [1, 1]
    assert torch.allclose(data.action[:3], torch.from_numpy(rows()["actions"][:3]), atol=1e-6)


# ---- Minari datasets


def meta(**changes):
    def change(data):
        path = data / "metadata.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def space(**changes):
    return meta(**{f"{key}_space": serialize_space(value) for key, value in changes.items()})


def put(name, value):
    def edit(file):
        file.pop(name)
        file[name] = value

    return hdf5(edit)


def empty_episode(file):
    for key in ("observations", "actions", "rewards", "terminations", "truncations"):
        value = file[f"episode_1/{key}"][()]
        file.pop(f"episode_1/{key}")
        file[f"episode_1/{key}"] = value[:1] if key == "observations" else value[:0]


def spaces_gone(data):
    path = data / "metadata.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if not k.endswith("_space")}))


BAD_DATA = {
    "not HDF5": (lambda data: (data / "main_data.hdf5").write_text("no"), "main_data.hdf5 is not an HDF5 file"),
    "truncated": (lambda data: truncate(data / "main_data.hdf5"), "main_data.hdf5 is truncated"),
    "no file": (lambda data: (data / "main_data.hdf5").unlink(), "there is no file .*main_data.hdf5"),
    "no JSON": (
        lambda data: (data / "metadata.json").write_text("{"),
        r"metadata.json cannot be read \(it is not JSON\)",
    ),
    "version": (meta(minari_version="9.0.0"), "written by Minari 9.0.0, which Minari .* cannot read"),
    "other dataset": (meta(dataset_id="D4RL/pen/human-v2"), "holds the dataset D4RL/pen/human-v2, not aepo/check"),
    "no episodes": (meta(total_episodes=0), "is empty: it holds no episode"),
    "steps": (meta(total_steps=12), "should hold 12 steps in 3 episodes and does not: it is damaged"),
    "episodes": (hdf5(lambda file: file.pop("episode_2")), "episode 2 lacks a key"),
    "missing key": (hdf5(lambda file: file.pop("episode_0/rewards")), "episode 0 lacks a key .*rewards"),
    "lengths": (put("episode_2/actions", np.zeros((6, 3))), r"episode 2 has length 7, .*actions \(6, 3\)"),
    "no last observation": (
        put("episode_0/observations", np.zeros((5, 11))),
        r"episode 0 has length 5, .*observations \(5, 11\)",
    ),
    "length 0": (hdf5(empty_episode), "episode 1 has length 0"),
    "nan": (
        at("episode_2/observations", (3, 1), np.nan),
        r"state holds NaN or infinity \(1 numbers, first at step 9\)",
    ),
    "infinity": (at("episode_2/rewards", 0, np.inf), r"reward holds NaN or infinity \(1 numbers, first at step 6\)"),
    "overflow": (
        at("episode_0/rewards", 0, 1e300),
        r"reward holds NaN or infinity \(1 numbers, first at step 0\), in episode_0/rewards, row 0: correct or remove",
    ),
    "outside": (
        at("episode_0/actions", (2, 0), -1.25),
        "1 of 13 actions are outside .* by 0.25 at most: `aepo data get d4rl-hopper-medium-v2 --clip`",
    ),
    "discrete": (space(action=gym.spaces.Discrete(4)), r"action space Discrete\(4\): only vectors .* not discrete"),
    "unbounded": (space(action=gym.spaces.Box(-np.inf, np.inf, (3,))), "unbounded action space"),
    "images": (
        space(observation=gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)),
        r"shape \(64, 64, 3\): .* not images",
    ),
    "parts": (
        space(observation=gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (11,)))),
        "has dict observations with the parts a, its task takes plain arrays: name the parts to take",
    ),
    "other task": (
        space(action=gym.spaces.Box(-1, 1, (6,))),
        "has 11 observations and 6 actions, task d4rl-hopper-medium-v2 11 and 3: it belongs to another task",
    ),
    "no keys": (
        lambda data: (data / "metadata.json").write_text("[]"),
        "metadata.json holds no keys: delete the folder",
    ),
    "episodes as text": (meta(total_episodes="3"), "metadata.json has total_episodes '3', of a wrong type: delete"),
    "steps as float": (meta(total_steps=13.0), "has total_steps 13.0, of a wrong type"),
    "negative steps": (meta(total_steps=-13), "is empty: it holds no episode"),
    "scores": (
        meta(ref_min_score="low", ref_max_score=1),
        "has ref_min_score 'low', of a wrong type: delete the folder",
    ),
    "pointer": (
        lambda data: (data / "main_data.hdf5").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "a pointer of Git LFS, whose data `git lfs pull` fetches.: delete the folder .*hopper-v0 and get the data again",
    ),
    "flag": (put("episode_1/truncations", [2]), "episode 1 is damaged .truncations must be 0 or 1, and is 2 in row 0"),
    "text": (put("episode_1/rewards", ["1"]), "episode 1 is damaged .rewards is of type object, not of real numbers"),
    "complex": (put("episode_1/rewards", [1j]), "rewards is of type complex128, not of real numbers"),
    "link": (put("episode_1/rewards", h5py.SoftLink("/nowhere")), "episode 1 is damaged .rewards is a link to nothing"),
    "group": (hdf5(lambda file: (file.pop("episode_1/rewards"), file.create_group("episode_1/rewards"))), "is a group"),
    "no group": (put("episode_1", 3), "episode 1 lacks a key .its group episode_1 is missing"),
    "no spaces": (spaces_gone, "cannot be read .they are left out, and no environment is named.: get a version whose"),
    "other box": (space(action=gym.spaces.Box(-2, 2, (3,))), "has the action space .*the environment Hopper-v4"),
}


@pytest.mark.parametrize(("change", "sentence"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_minari_data(folder, change, sentence):
    change(hopper() / "data")
    before = written(folder)
    with pytest.raises(files.StudyError, match=sentence) as raised:
        datasets.load(HOPPER, "full")
    assert "\n" not in str(raised.value)
    assert written(folder) == before


def test_good_data_with_an_episode_of_one_step(folder, capsys):
    data_folder = hopper()
    data = datasets.load(HOPPER, "full")
    assert torch.bincount(data.episode).tolist() == [5, 1, 7]
    first = minari.load_dataset(ID)[1]
    assert torch.equal(data.next_state[5], torch.from_numpy(first.observations[1]).float())
    assert data.warnings == ()
    assert capsys.readouterr().out == ""
    again = datasets.load(HOPPER, "full")
    assert all(torch.equal(getattr(again, k), v) for k, v in vars(data).items() if torch.is_tensor(v))
    assert len(list(data_folder.glob("aepo-*"))) == 1
    assert minari.list_local_datasets()[ID]["total_steps"] == 13


def test_equal_rewards_are_a_warning(capsys):
    data_folder = hopper()
    with h5py.File(data_folder / "data/main_data.hdf5", "r+") as file:
        for episode in file.values():
            episode["rewards"][:] = 0.5
    warned = ("all 13 rewards are 0.5: nothing can be learned from them",)
    assert datasets.load(HOPPER, "full").warnings == warned
    assert f"dataset {ID}: {warned[0]}" in capsys.readouterr().out
    assert datasets.load(HOPPER, "full").warnings == warned


def test_a_mark_has_actions_clipped_and_the_data_stay_as_they_are(folder):
    data_folder = hopper()
    at("episode_0/actions", (2, 0), -1.25)(data_folder / "data")
    before = written(folder)
    storage.ask_to_clip(ID)
    data = datasets.load(HOPPER, "full")
    assert data.action[2, 0] == -1
    assert data.warnings == ("1 of 13 actions are outside the action box, by 0.25 at most, and were moved into it",)
    assert before.items() <= written(folder).items()


def test_an_unreadable_file(folder, monkeypatch):
    hopper()
    before = written(folder)
    monkeypatch.setattr(h5py, "File", forbidden)
    with pytest.raises(files.StudyError, match=r"main_data.hdf5 cannot be read: no permission"):
        datasets.load(HOPPER, "full")
    assert written(folder) == before


# ---- disk and company


def test_a_full_disk_leaves_nothing(folder):
    """A real one: the system refuses to let any file grow beyond 100 kB."""
    d4rl(folder / "f.hdf5", lambda found: found.update({k: np.repeat(v, 100, 0) for k, v in found.items()}))
    code = """
import resource, sys
from aepo.data import importing, tasks
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    importing.import_hdf5(sys.argv[1], tasks.get("d4rl-hopper-medium-v2"), "aepo/check/hopper-v0")
except importing.StudyError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code, folder / "f.hdf5"], capture_output=True, text=True, timeout=100)
    assert re.search(
        r"cannot write the dataset aepo/check/hopper-v0 to .* \(File too large\): free space", out.stdout
    ), out
    assert out.returncode == 0
    assert written(folder) == {}


def test_of_two_processes_one_works_and_the_other_waits(folder):
    d4rl(folder / "f.hdf5")
    path = str(folder / "f.hdf5")
    code = (
        f"from aepo.data import importing, tasks; importing.import_hdf5({path!r}, tasks.get({HOPPER.name!r}), {ID!r})"
    )
    environment = dict(os.environ)
    with storage.claim(ID) as staging:
        other = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        waiting = other.stdout.readline()
        assert waiting == f"another process works on {ID.replace('/', '-')} in {folder / 'minari'}: waiting for it\n"
        assert other.poll() is None
        hopper()
        assert staging in (staging / ID).parents
    said, _ = other.communicate(timeout=60)
    assert other.returncode == 1
    assert said == ""
    assert len(datasets.load(HOPPER, "full")) == 13


def test_a_damaged_dataset_is_mended_by_what_is_advised(folder):
    d4rl(folder / "f.hdf5")
    importing.import_hdf5(folder / "f.hdf5", HOPPER, ID)
    for spoil in (truncate, Path.unlink, lambda path: path.write_text("")):
        spoil(storage.root() / ID / "data/main_data.hdf5")
        with pytest.raises(files.StudyError, match=r"delete the folder .* and get the data again") as raised:
            datasets.load(HOPPER, "full")
        shutil.rmtree(re.search(r"delete the folder (\S+) and get", str(raised.value))[1])
        importing.import_hdf5(folder / "f.hdf5", HOPPER, ID)
        assert len(datasets.load(HOPPER, "full")) == 40


def test_what_a_killed_process_left_is_cleared_away(folder):
    left = folder / "minari" / ".staging-aepo-check-hopper-v0"
    (left / "aepo").mkdir(parents=True)
    d4rl(folder / "f.hdf5")
    importing.import_hdf5(folder / "f.hdf5", HOPPER, ID)
    assert sorted(p.name for p in (folder / "minari").iterdir()) == [".locks", "aepo"]
    (left / "aepo").mkdir(parents=True)  # of one that was killed right after it moved the dataset into place
    datasets.prepare(HOPPER, "full", DataSettings())
    assert sorted(p.name for p in (folder / "minari").iterdir()) == [".locks", "aepo"]
