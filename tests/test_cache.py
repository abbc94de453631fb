"""The cache beside the data: checked, made again where it is wrong, never in the way."""

import os
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from samples import HOPPER, at, forbidden, hopper, written

from aepo import files
from aepo.data import cache, datasets, reading

pytestmark = pytest.mark.usefixtures("folder")


def test_a_damaged_cache_is_made_again(capsys):
    data_folder = hopper()
    first = datasets.load(HOPPER, "full")
    (path,) = data_folder.glob("aepo-*")
    whole = path.read_bytes()
    for damaged in (
        whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        whole[:-8],
        b"",
        whole.replace(first.content_hash.encode(), b"0" * 16),
    ):
        path.write_bytes(damaged)
        again = datasets.load(HOPPER, "full")
        assert "its cache is damaged (the checksum does not match), so it is made again" in capsys.readouterr().out
        assert again.content_hash == first.content_hash
        assert path.read_bytes() == whole


def test_a_cache_of_other_data_is_made_again_and_a_copy_keeps_it(capsys, monkeypatch):
    data_folder = hopper()
    first = datasets.load(HOPPER, "full")
    os.utime(data_folder / "data/main_data.hdf5")
    with monkeypatch.context() as patched:
        patched.setattr(reading, "transitions", forbidden)
        assert datasets.load(HOPPER, "full").content_hash == first.content_hash
    at("episode_0/rewards", 0, 5.0)(data_folder / "data")
    data = datasets.load(HOPPER, "full")
    assert "the data have changed since their cache was made, so it is made again" in capsys.readouterr().out
    assert data.reward[0] == 5
    assert data.content_hash != first.content_hash
    assert first.reward[0] != 5


@pytest.mark.parametrize(("rows", "close"), [(300_000, 1e-4), (4_000, 1e-3)])
def test_mean_and_spread_of_many_rows_do_not_drift(folder, monkeypatch, rows, close):
    """A float32 sum row by row does: 100.3 +- .5 had a mean of 100.23 there; a constant .7 had a spread and was scaled."""
    data_folder, rng = hopper(), np.random.default_rng(0)
    state = np.stack([rng.normal(100.3, 0.5, rows), np.full(rows, 0.7)], 1).astype(np.float32)
    arrays = {"state": state, "action": np.zeros((rows, 1), np.float32)}
    box = SimpleNamespace(low=-np.ones(1), high=np.ones(1))
    monkeypatch.setattr(reading, "transitions", lambda *_: (arrays, box, []))
    monkeypatch.setattr(cache, "content_hash", lambda _: "0" * 16)
    made = cache.build(data_folder, "hopper", HOPPER)[0]
    assert abs(made["state_mean"][0] - state[:, 0].mean(dtype=np.float64)) < close
    assert abs(made["state_std"][0] - state[:, 0].std(dtype=np.float64)) < close
    assert made["state_std"][1] == 1


def test_a_cache_of_another_reading_is_not_taken():
    data_folder = hopper()
    datasets.load(HOPPER, "full")
    datasets.load(replace(HOPPER, env_id=None), "full")
    assert len(list(data_folder.glob("aepo-*"))) == 2


def test_loading_works_where_no_cache_can_be_written(folder, monkeypatch, capsys):
    hopper()
    before = written(folder)
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    data = datasets.load(HOPPER, "full")
    assert len(data) == 13
    assert "no cache was written (No space left on device)" in capsys.readouterr().out
    assert written(folder) == before


def test_data_in_a_folder_of_others_are_read_without_a_lock(monkeypatch):
    hopper()
    monkeypatch.setattr(files, "lock", forbidden)
    monkeypatch.setattr(files, "save_tensors", forbidden)
    assert len(datasets.load(HOPPER, "full")) == 13


def test_a_cache_is_plain_safetensors_with_aligned_tensors():
    from safetensors.torch import load_file

    data_folder = hopper()
    data = datasets.load(HOPPER, "full")
    (path,) = data_folder.glob("aepo-*")
    found = load_file(path)
    assert len(found) == 11
    assert all(torch.equal(getattr(data, key), value) for key, value in found.items())
    again, made = cache.read(path)
    assert made["content_hash"] == data.content_hash
    assert all(torch.equal(found[key], value) for key, value in again.items())
    assert again["episode"].data_ptr() % 8 == 0


def test_a_constant_dimension_is_not_blown_up():
    data_folder = hopper()
    with h5py.File(data_folder / "data/main_data.hdf5", "r+") as file:
        for episode in file.values():
            rows = episode["observations"][:]
            rows[:, 2] = 7.0
            episode["observations"][:] = rows
    data = datasets.load(HOPPER, "full")
    assert data.state_std[2] == 1
    assert (data.state_std[:2] > 0.01).all()
    assert (data.standardize(data.state)[:, 2] == 0).all()
