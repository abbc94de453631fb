"""Downloads from a stand-in for Minari's server: the same tensors, or one sentence and nothing written."""

import json
import os
import re
import socket
import subprocess
import sys
import warnings

import hub
import minari
import numpy as np
import pytest
import torch
from minari.data_collector.episode_buffer import EpisodeBuffer

from aepo import environments
from aepo.data import datasets, tasks
from aepo.data import download as module

TASK = tasks.get("pointmaze-umaze-v2")
ID = TASK.dataset_ids["smoke"]
WORK = """
import json, sys, time
from dataclasses import replace
from aepo.data import datasets, tasks
from aepo import settings
for dataset_id in sys.argv[1:]:
    task = replace(tasks.get("pointmaze-umaze-v2"), dataset_ids={"smoke": dataset_id})
    started, error = time.time(), ""
    try:
        datasets.prepare(task, "smoke", settings.SMOKE.data)
    except datasets.files.StudyError as raised:
        error = str(raised)
    print(json.dumps({"error": error, "seconds": time.time() - started}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Minari folder with a small recording of the real environment under the official id, and one too new."""
    folder = tmp_path_factory.mktemp("hub")
    before = os.environ["MINARI_DATASETS_PATH"]
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        for dataset_id in (ID, "D4RL/pointmaze/open-v2"):
            record(dataset_id)
    finally:
        os.environ["MINARI_DATASETS_PATH"] = before
    newer = folder / "D4RL/pointmaze/open-v2/data/metadata.json"
    newer.write_text(json.dumps(json.loads(newer.read_text()) | {"minari_version": "9.0.0"}))
    index = folder / "D4RL/namespace_metadata.json"
    index.write_text(json.dumps({"datasets": [ID, "D4RL/pointmaze/open-v2"], "namespaces": ["D4RL/pointmaze"]}))
    return folder


def record(dataset_id):
    env = environments.make(TASK, flat=False)
    env.action_space.seed(0)
    episodes = []
    for i in range(3):
        seen, actions, rewards = [env.reset(seed=i)[0]], [], []
        for _ in range(40):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            seen.append({key: value.copy() for key, value in observation.items()})
            rewards.append(reward)
        episodes.append(
            EpisodeBuffer(
                observations={key: np.array([o[key] for o in seen]) for key in seen[0]},
                actions=np.array(actions),
                rewards=np.array(rewards),
                terminations=np.zeros(40, dtype=bool),
                truncations=np.arange(40) == 39,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(dataset_id, episodes, env=env, ref_min_score=1.0, ref_max_score=2.0)
    env.close()


def download(endpoint, folder, *dataset_ids, **environment):
    """What a fresh process says that downloads to `folder`: the hub's variables are read at import."""
    variables = {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(folder / "hf"),
        "TQDM_POSITION": "-1",  # the hub's client shows its bars outside terminals too
        "MINARI_DATASETS_PATH": str(folder / "minari"),
    }
    out = subprocess.run(
        [sys.executable, "-c", WORK, *dataset_ids],
        env=os.environ | variables | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    return [json.loads(line) for line in out.stdout.splitlines()], out.stderr


def left_behind(folder):
    """Files below Minari's folder, locks left out."""
    return [p for p in (folder / "minari").rglob("*") if p.is_file() and ".locks" not in p.parts]


def test_the_download_gives_the_tensors_of_its_source(source, tmp_path, monkeypatch):
    with hub.serve(source) as endpoint:
        (first, again), progress = download(endpoint, tmp_path, ID, ID)
    assert first["error"] == again["error"] == ""
    assert again["seconds"] < 0.1
    assert "Fetching" in progress
    loaded = []
    for folder in (tmp_path / "minari", source):
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
        loaded.append(datasets.load(TASK, "smoke"))
    got, expected = loaded
    for name, value in vars(expected).items():
        same = torch.equal(getattr(got, name), value) if torch.is_tensor(value) else getattr(got, name) == value
        assert same, name
    assert len(got) == 120
    assert got.reference_scores == TASK.references
    fetched, held = (folder / ID / "data" / "main_data.hdf5" for folder in (tmp_path / "minari", source))
    assert fetched.read_bytes() == held.read_bytes()
    assert sorted(p.name for p in (tmp_path / "minari").iterdir()) == [".locks", "D4RL"]


@pytest.mark.parametrize(
    ("mode", "sentences"),
    [
        ("broken", {ID: f"the download of {ID} failed .*try again; the task local-pointmaze-umaze"}),
        ("corrupt", {ID: f"download of {ID} is damaged .*checksum differs"}),
        (
            "",
            {
                "D4RL/pointmaze/moon-v2": "no dataset D4RL/pointmaze/moon-v2.*local-pointmaze-umaze makes such data",
                "D4RL/pointmaze/umaze-v7": "umaze-v7, doesn't exist .* suggest .*D4RL/pointmaze/umaze-v2",
                "D4RL/pointmaze/open-v2": "compatible version .* installed version of Minari",
            },
        ),
    ],
)
def test_a_failed_download_says_why_and_leaves_nothing(source, tmp_path, mode, sentences):
    with hub.serve(source, mode) as endpoint:
        said, _ = download(endpoint, tmp_path, *sentences)
    for answer, sentence in zip(said, sentences.values(), strict=True):
        assert re.search(sentence, answer["error"]), answer
        assert "\n" not in answer["error"]
    assert left_behind(tmp_path) == []


def test_without_network_it_says_so_at_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (said,), _ = download(f"http://127.0.0.1:{port}", tmp_path, ID)
    assert "is not on disk, and" in said["error"]
    assert "does not answer" in said["error"]
    assert "(`aepo data collect local-pointmaze-umaze`)" in said["error"]
    assert f"of another machine's Minari folder to {tmp_path / 'minari' / ID}; the task" in said["error"]
    assert "(no connection within 5 s)" in said["error"]
    assert said["seconds"] < 8
    (offline,), _ = download(f"http://127.0.0.1:{port}", tmp_path, ID, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in offline["error"]
    assert left_behind(tmp_path) == []


def test_every_recipe_that_replaces_a_download_is_named():
    def named(task):
        return module.instead(tasks.get(task)).partition("the task ")[2].split(" ")[0]

    assert named("mujoco-hopper-medium-v0") == "local-hopper-medium"
    assert named("d4rl-walker2d-medium-expert-v2") == "local-walker2d-medium-expert"
    assert named("d4rl-maze2d-large-v1") == "maze2d-large"
    assert named("antmaze-umaze-v1") == named("pen-human-v2") == ""
