"""Files of others: each known layout becomes the same dataset, what is not understood is named and refused."""

import re
import shutil

import h5py
import numpy as np
import pytest
import torch
from samples import HOPPER, ID, d4rl, entry, hopper, other, rows, written

from aepo import files
from aepo.data import datasets, describe, importing, storage

pytestmark = pytest.mark.usefixtures("folder")
LENGTHS, ENDS = (7, 5, 8), ("terminal", "timeout", "timeout")


def walk(steps, seed):
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 3, 11) + np.cumsum(rng.normal(0, 0.01, (steps, 11)), 0)).astype(np.float32)


def recording():
    """Three episodes in D4RL's layout, without next observations."""
    last = np.cumsum(LENGTHS) - 1
    found = rows(sum(LENGTHS)) | {"observations": np.concatenate([walk(n, i) for i, n in enumerate(LENGTHS)])}
    for key, end in (("terminals", "terminal"), ("timeouts", "timeout")):
        found[key] = np.isin(
            np.arange(len(found["rewards"])), [at for at, e in zip(last, ENDS, strict=True) if e == end]
        )
    return found


def put(path, found):
    with h5py.File(path, "w") as file:
        for key, value in found.items():
            file[key] = value
    return path


def tensors(path):
    importing.import_hdf5(path, HOPPER, ID)
    data = datasets.load(HOPPER, "full")
    shutil.rmtree(storage.root() / ID)
    return {key: value.clone() for key, value in vars(data).items() if isinstance(value, torch.Tensor)}


def d3rlpy(found):
    """d3rlpy's: every end in `episode_terminals`, numbers for flags, a column of rewards, attributes as arrays."""
    ends = found["terminals"] | found.pop("timeouts")
    found |= {"episode_terminals": ends.astype(np.float32), "terminals": found["terminals"].astype(np.float32)}
    return found | {"rewards": found["rewards"][:, None], "discrete_action": False, "version": "1.0"}


def ogbench(found):
    """OGBench's compact layout: terminals at the last two rows of a trajectory, the last of which is not valid."""
    ends = found["terminals"] | found.pop("timeouts")
    valid = ~(ends & ~found["terminals"])
    return found | {
        "masks": 1.0 - found["terminals"],
        "valids": valid.astype(np.float32),
        "terminals": (ends | ~np.append(valid[1:], True)).astype(np.float32),
        "qpos": np.zeros((len(ends), 6)),
    }


def ogbench_regular(found):
    """OGBench's other layout: with next observations, terminals at every end of a trajectory."""
    ends = found["terminals"] | found.pop("timeouts")
    after = np.where(ends[:, None], found["observations"], np.roll(found["observations"], -1, 0))
    kept = ~(ends & ~found["terminals"])
    found |= {
        "next_observations": after,
        "masks": 1.0 - found["terminals"],
        "terminals": ends | np.roll(ends & ~kept, -1),
    }
    return {key: value[kept] for key, value in found.items()}


def d4rl_v2(found):
    found["next_observations"] = np.roll(found["observations"], -1, 0)
    found["next_observations"][found["terminals"]] = found["observations"][found["terminals"]]
    kept = ~found["timeouts"]
    found["timeouts"] = np.roll(found["timeouts"], -1)
    return {key: value[kept] for key, value in found.items()}


@pytest.mark.parametrize("layout", [d3rlpy, ogbench, ogbench_regular, d4rl_v2])
def test_a_layout_becomes_the_tensors_of_d4rls(folder, layout):
    expected = tensors(put(folder / "d4rl.hdf5", recording()))
    assert torch.bincount(expected["episode"]).tolist() == [7, 4, 7]
    assert expected["terminated"].nonzero().flatten().tolist() == [6]
    found = tensors(put(folder / "other.hdf5", layout(recording())))
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_minaris_own_file_is_read(folder):
    data_folder = hopper(dataset_id="aepo/check/other-v0")
    found = tensors(data_folder / "data/main_data.hdf5")
    assert torch.bincount(found["episode"]).tolist() == [5, 1, 7]
    with h5py.File(data_folder / "data/main_data.hdf5") as file:
        assert np.allclose(found["next_state"][4], file["episode_0/observations"][5])
        assert np.allclose(found["action"][6:], file["episode_2/actions"], atol=1e-6)


def test_next_observations_that_differ_by_rounding_do_not_cut(folder):
    found = d4rl_v2(recording())
    found["next_observations"] = found["next_observations"].astype(np.float16)
    data = tensors(put(folder / "f.hdf5", found))
    assert torch.bincount(data["episode"]).tolist() == [7, 4, 7]


def link(target):
    return other("timeouts", target)


def group(found):
    found["rewards/of"] = found.pop("rewards")


BAD = {
    "unknown key": (other("dones", np.zeros(40)), r"holds 'dones', which is not understood: move it into the group infos"),
    "unknown group": (other("extras/ends", np.zeros(40)), "holds 'extras', which is not understood"),
    "flag of 2": (entry("terminals", 3, 2), "terminals must be 0 or 1, and is 2 in row 3"),
    "flag of a half": (other("timeouts", np.full(40, 0.5)), "timeouts must be 0 or 1, and is 0.5 in row 0"),
    "flag of NaN": (other("timeouts", np.full(40, np.nan)), "timeouts must be 0 or 1, and is nan in row 0"),
    "text": (other("rewards", ["1"] * 40), "rewards is of type object, not of real numbers"),
    "complex": (other("rewards", np.ones(40, complex)), "rewards is of type complex128, not of real numbers"),
    "group": (group, "rewards is a group, not an array"),
    "link": (link(h5py.SoftLink("/nowhere")), "timeouts is a link to nothing"),
    "file": (link(h5py.ExternalLink("none.hdf5", "/x")), "timeouts is a link to nothing"),
    "no array": (other("rewards", h5py.Empty("f4")), "rewards is empty, not an array"),
    "two rewards": (other("rewards", np.zeros((40, 2))), r"rewards has the shape \(40, 2\): leave one number a row"),
    "one reward": (other("rewards", 1.0), "its arrays differ in length .*rewards 0"),
    "widths": (other("next_observations", np.zeros((40, 5))), r"next_observations has the shape \(40, 5\)"),
    "valids alone": (other("valids", np.ones(40)), "valids and no masks, so nothing says which steps terminate"),
    "padding": (
        lambda found: found.update(valids=np.arange(40) % 10 < 5, masks=np.ones(40)),
        "valids is 0 in row 5, which ends no trajectory",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), BAD.values(), ids=BAD)
def test_what_is_not_understood_is_refused(folder, change, sentence):
    d4rl(folder / "bad.hdf5", lambda found: (found.update(terminals=found["terminals"].astype(float)), change(found)))
    with pytest.raises(files.StudyError, match=sentence) as raised:
        importing.import_hdf5(folder / "bad.hdf5", HOPPER, ID)
    assert str(raised.value).startswith(f"{folder / 'bad.hdf5'}")
    assert "\n" not in str(raised.value)
    assert written(folder) == {}


def test_the_advice_on_an_unknown_key_helps(folder):
    d4rl(folder / "f.hdf5", other("returns", np.zeros(40)))
    with h5py.File(folder / "f.hdf5", "r+") as file:
        file.move("returns", "infos/returns")
    importing.import_hdf5(folder / "f.hdf5", HOPPER, ID)
    assert len(datasets.load(HOPPER, "full")) == 40


def test_what_a_file_is_instead_is_said(folder):
    path = folder / "f.hdf5"
    for content, kind in (
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, whose data `git lfs pull` fetches"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"PK\x03\x04", "a .zip or .npz archive, whose arrays belong into an HDF5 file"),
        (b"", "it is empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(files.StudyError, match=re.escape(f"is not an HDF5 file, or a damaged one ({kind})")):
            importing.import_hdf5(path, HOPPER, ID)


def test_rows_that_are_dropped_are_counted_and_a_file_without_any_is_refused(folder, capsys):
    importing.import_hdf5(put(folder / "f.hdf5", recording()), HOPPER, ID)
    said = (
        "18 of 20 rows kept, in 3 episodes: 2 rows end an episode that does not terminate, and have no next observation"
    )
    assert f"f.hdf5: {said}\n" in capsys.readouterr().out
    (line,) = [line for line in describe.description(HOPPER, "full") if line.startswith("imported")]
    assert said in line
    found = recording()
    every = found | {"terminals": found["terminals"] & False, "timeouts": found["timeouts"] | True}
    shutil.rmtree(storage.root() / ID)
    with pytest.raises(
        files.StudyError, match=r"f.hdf5: 0 of 20 rows kept.* so nothing is left: correct its flags, or"
    ):
        importing.import_hdf5(put(folder / "f.hdf5", every), HOPPER, ID)
    assert written(folder) == {}
    importing.import_hdf5(put(folder / "f.hdf5", every | {"next_observations": found["observations"]}), HOPPER, ID)
    assert len(datasets.load(HOPPER, "full")) == 20


def test_an_enormous_reward_is_a_warning_that_names_row_and_array(folder, capsys):
    d4rl(folder / "f.hdf5", entry("rewards", 31, 1e30))
    importing.import_hdf5(folder / "f.hdf5", HOPPER, ID)
    said = "f.hdf5: rewards holds enormous numbers in 1 steps (first 1e+30 at step 31): correct or remove them"
    assert said in capsys.readouterr().out
    data = datasets.load(HOPPER, "full")
    assert ", in episode_3/rewards, row 1: correct or remove them" in data.warnings[0]
    shown = "\n".join(describe.description(HOPPER, "full"))
    assert "(first 1e+30 at step 31)" in shown


def joined(lengths, **more):
    """A file of Hopper's sizes whose ends of episodes are not marked."""
    found = rows(sum(lengths)) | {"observations": np.concatenate([walk(n, i) for i, n in enumerate(lengths)])}
    return found | {"terminals": np.zeros(sum(lengths), bool)} | more


def test_joined_episodes_are_pointed_out(folder):
    timeouts = np.arange(2_000) == 1_999
    importing.import_hdf5(put(folder / "f.hdf5", joined((900, 1_100), timeouts=timeouts)), HOPPER, ID)
    said = "\n".join(describe.description(HOPPER, "full"))
    assert "1 of 1 episodes are longer than the evaluation's 1000 steps" in said
    assert "1 steps jump by more than 5 times the usual (first in rows 899)" in said
    timeouts[899] = True
    shutil.rmtree(storage.root() / ID)
    importing.import_hdf5(put(folder / "f.hdf5", joined((900, 1_100), timeouts=timeouts)), HOPPER, ID)
    assert describe.jumps(datasets.load(HOPPER, "full")) == []
