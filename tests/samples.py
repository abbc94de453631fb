"""Small data in the shape of Hopper's for the tests of files, caches and commands, and ways to spoil them."""

import warnings
from dataclasses import replace

import gymnasium as gym
import h5py
import minari
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer

from aepo.data import storage, tasks

HOPPER = replace(
    tasks.get("d4rl-hopper-medium-v2"), dataset_ids=dict.fromkeys(("smoke", "full"), "aepo/check/hopper-v0")
)
ID = "aepo/check/hopper-v0"
BOX = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)


def written(folder):
    """Everything below Minari's folder with its content, locks left out."""
    found = (folder / "minari").rglob("*")
    return {str(p): p.read_bytes() for p in found if p.is_file() and ".locks" not in p.parts}


def rows(steps=40):
    rng = np.random.default_rng(0)
    return {
        "observations": rng.standard_normal((steps, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        "rewards": rng.standard_normal(steps).astype(np.float32),
        "terminals": np.arange(steps) % 10 == 9,
    }


def d4rl(path, change=lambda found: None):
    found = rows()
    change(found)
    with h5py.File(path, "w") as file:
        for key, value in found.items():
            file[key] = value


def entry(key, index, value):
    def change(found):
        found[key][index] = value

    return change


def other(key, value):
    return lambda found: found.update({key: value})


def hopper(lengths=(5, 1, 7), dataset_id=ID):
    """A Minari dataset in the shape of Hopper's, with an episode of one step."""
    rng = np.random.default_rng(1)
    episodes = [
        EpisodeBuffer(
            observations=rng.standard_normal((n + 1, 11)),
            actions=rng.uniform(-1, 1, (n, 3)).astype(np.float32),
            rewards=rng.standard_normal(n),
            terminations=np.zeros(n, dtype=bool),
            truncations=np.arange(n) == n - 1,
        )
        for n in lengths
    ]
    space = gym.spaces.Box(-np.inf, np.inf, (11,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(dataset_id, episodes, observation_space=space, action_space=BOX)
    return storage.root() / dataset_id


def hdf5(edit):
    def change(data):
        with h5py.File(data / "main_data.hdf5", "r+") as file:
            edit(file)

    return change


def at(name, index, value):
    def edit(file):
        file[name][index] = value

    return hdf5(edit)


def forbidden(*arguments, **options):
    raise PermissionError(13, "Permission denied")


def write_pendulum(path):
    """Random Pendulum episodes in the layout of D4RL's files."""
    rows = {key: [] for key in ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts")}
    env = gym.make("Pendulum-v1", max_episode_steps=50)
    env.action_space.seed(0)
    for episode in range(8):
        observation, _ = env.reset(seed=episode)
        truncated = False
        while not truncated:
            action = env.action_space.sample()
            after, reward, terminated, truncated, _ = env.step(action)
            for key, value in zip(rows, (observation, after, action, reward, terminated, truncated), strict=True):
                rows[key].append(value)
            observation = after
    with h5py.File(path, "w") as file:
        for key, value in rows.items():
            file[key] = np.array(value, dtype=bool if key in ("terminals", "timeouts") else np.float32)
