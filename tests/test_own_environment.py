"""A user's environment may do anything: it is tried before training, and what is wrong with it is one sentence."""

import importlib
import math
import sys
from types import SimpleNamespace

import gymnasium as gym
import h5py
import numpy as np
import odd_environments
import pytest
import torch
from test_bad_inputs import small

from aepo import cli, environments, files, settings
from aepo.data import datasets, tasks
from aepo.study import evaluation, results


@pytest.fixture(autouse=True)
def _untried(monkeypatch):
    monkeypatch.setattr(environments, "_TRIED", set())


def write(folder, arguments="{}", env_id="odd_environments:odd/Odd-v0", name="mine", dataset="mine/odd-v0"):
    path = folder / f"{name}.yaml"
    path.write_text(f"dataset: {dataset}\nenv_id: {env_id}\nhorizon: 50\nenv_kwargs: {arguments}\n")
    return str(path)


def task(folder, arguments="{}", **other):
    return tasks.get(write(folder, arguments, **other))


REFUSED = {
    "no start": "cannot be made (FileNotFoundError: model.xml",
    "no reset": "failed in reset (RuntimeError: the simulator did not start): mend it and call this again",
    "old reset": f"failed in reset ({environments.GYMNASIUM})",
    "old step": f"failed in step ({environments.GYMNASIUM})",
    "raise": "failed in step (RuntimeError: unstable simulation)",
    "exit": "failed in step (SystemExit: 0)",
    "nan": "failed in step (the observation holds NaN, infinity or a number beyond float32)",
    "huge": "failed in step (the observation holds NaN, infinity or a number beyond float32)",
    "short": "(the observation has type float64 and shape (2,), its space (3,))",
    "text": "(the observation has type <U1 and shape (3,), its space (3,))",
    "none": "(the observation has type object and shape (), its space (3,))",
    "ragged": "(the observation is a list of unequal lengths, or of what is no number: an array is needed)",
    "nan reward": "(the reward is nan, not one finite number)",
    "infinite reward": "(the reward is inf, not one finite number)",
    "no reward": "(the reward is None, not one finite number)",
    "two rewards": "(the reward is array([1., 1.]), not one finite number)",
    "text reward": "(the reward is '1', not one finite number)",
    "complex reward": "(the reward is 1j, not one finite number)",
    "no flag": "(terminated or truncated is None, not one finite number)",
    "no info": "(info is None, not a dict)",
    "text success": "(info['success'] is 'yes', not one finite number)",
    "half success": "(info['success'] is 0.5, neither true nor false)",
}


@pytest.mark.parametrize(("kind", "sentence"), REFUSED.items(), ids=REFUSED)
def test_what_is_wrong_is_said_before_training(tmp_path, kind, sentence):
    with pytest.raises(files.StudyError) as said:
        environments.make(task(tmp_path, f"{{kind: {kind}}}"))
    assert str(said.value).startswith("the environment odd_environments:odd/Odd-v0 of task mine ")
    assert sentence in str(said.value)
    assert "\n" not in str(said.value)
    environments.make(task(tmp_path, "{kind: ok}")).close()  # mended


def test_a_lack_of_memory_is_none_of_its_faults(tmp_path):
    with pytest.raises(MemoryError):
        environments.make(task(tmp_path, "{kind: memory}"))


def test_only_the_environment_of_an_own_task_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "_try", lambda *_: pytest.fail("tried"))
    environments.make(tasks.get("maze2d-umaze")).close()
    with pytest.raises(pytest.fail.Exception):
        environments.make(task(tmp_path))


@pytest.mark.parametrize("kind", ["list", "mutable", "reward of one", "success of one", "no success", "no close"])
def test_what_can_be_understood_is_taken(tmp_path, kind):
    copies, plain = (evaluation.Copies(task(tmp_path, f"{{kind: {name}}}"), 1) for name in (kind, "ok"))
    assert np.array_equal(copies.reset([0]), plain.reset([0]))
    seen = []
    for step in range(1, 31):
        (observation, reward, ended, success), expected = (each.step([0], np.zeros((1, 2))) for each in (copies, plain))
        assert np.array_equal(observation, expected[0])
        assert np.array_equal(reward, expected[1])
        assert not ended
        assert np.array_equal(success, [1.0 if kind == "success of one" and step >= 20 else math.nan], equal_nan=True)
        seen.append((observation, observation.copy()))
    copies.envs[0].close()
    assert all(np.array_equal(*pair) for pair in seen)


def test_a_start_of_whole_numbers_rounds_nothing_that_follows(tmp_path):
    """The states that the policy is given, which go into an array of what reset returned."""
    given = []

    def act(state, noise):
        given.append(state.clone())
        return noise[..., 0, :].abs()

    actor = SimpleNamespace(draws=1, behavior=SimpleNamespace(low=torch.zeros(2)), act=act)
    evaluation.rollout(actor, evaluation.Copies(task(tmp_path, "{kind: whole start}"), 1), [0], 1, 10)
    assert given[0].equal(given[0].round())
    assert not given[1].equal(given[1].round())
    assert torch.cat(given)[1:, 0, 2].tolist() == pytest.approx([step / 50 for step in range(1, 10)])


def test_actions_stay_inside_a_box_whose_bounds_are_no_float32(tmp_path):
    """float32(-0.1) lies below -0.1."""
    env = environments.make(task(tmp_path, "{dtype: float64}"))
    env.reset(seed=0)
    for corner in (odd_environments.LOW, odd_environments.HIGH, (9.0, -9.0)):
        env.step(np.array(corner, np.float32))  # which asserts it


BOXES = {
    "a flat side": ("{low: [-1, 0], high: [1, 0]}", "flat action space"),
    "flat in float32": ("{low: [0, 1], high: [1, 1.000000001], dtype: float64}", "flat action space"),
    "unbounded": ("{low: [-.inf, 0]}", "unbounded action space"),
    "too wide": ("{low: [-1e300, 0], dtype: float64}", "unbounded action space"),
    "wider than float32": ("{low: [-3e38, 0], high: [3e38, 1]}", "unbounded action space"),
}


@pytest.mark.parametrize(("box", "sentence"), BOXES.values(), ids=BOXES)
def test_a_box_by_which_actions_cannot_be_scaled(tmp_path, box, sentence):
    with pytest.raises(
        files.StudyError, match=rf"has the {sentence} .* each side needs a finite low below a finite high"
    ):
        environments.make(task(tmp_path, box))
    environments.make(task(tmp_path, "{low: [-1, 0], high: [1, 1]}")).close()


def test_a_module_that_is_not_found_is_advised_to_be_on_the_path(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    code = "import gymnasium\ngymnasium.register('far/A-v0', entry_point='odd_environments:Odd')\n"
    (tmp_path / "far" / "far_away.py").write_text(code)
    mine = task(tmp_path, env_id="far_away:far/A-v0")
    with pytest.raises(files.StudyError, match=r"No module named 'far_away'.*in a folder of PYTHONPATH"):
        environments.make(mine)
    monkeypatch.syspath_prepend(tmp_path / "far")
    importlib.invalidate_caches()
    environments.make(mine).close()


def test_what_is_stored_of_an_environment(tmp_path):
    stored = environments.spec(task(tmp_path, "{kind: list}"))
    assert (stored.id, stored.kwargs, stored.max_episode_steps) == ("odd/Odd-v0", {"kind": "list"}, 50)
    assert environments.spec(task(tmp_path, env_id="odd_environments:odd/Class-v0")) is None, "a class is no JSON"
    assert environments.spec(task(tmp_path, env_id="null")) is None


def write_data(path, dtype="float64"):
    """Random episodes of the environment in D4RL's layout."""
    env = gym.make("odd_environments:odd/Odd-v0", dtype=dtype)
    env.action_space.seed(0)
    rows = {"observations": [], "actions": [], "rewards": [], "timeouts": []}
    for episode in range(8):
        observation, _ = env.reset(seed=episode)
        for step in range(50):
            action = env.action_space.sample()
            after, reward, *_ = env.step(action)
            for key, value in zip(rows, (observation, action, reward, step == 49), strict=True):
                rows[key].append(value)
            observation = after
    with h5py.File(path, "w") as file:
        for key, value in rows.items():
            file[key] = np.array(value)
        file["terminals"] = np.zeros(400, bool)


@pytest.mark.parametrize("tried", [1_000, 5], ids=["found before training", "found in evaluation"])
def test_a_task_that_fails_does_not_end_the_others(folder, monkeypatch, capsys, tried):
    """Several own tasks in one call, their data and environment with a float64 box; one fails, and is named."""
    monkeypatch.setitem(settings.PROFILES, "smoke", small())
    monkeypatch.setattr(environments, "TRIED_STEPS", 5)
    monkeypatch.chdir(folder)
    write_data(folder / "data.hdf5")
    arguments = {"first": "{kind: raise, dtype: float64}", "second": "{dtype: float64}"}
    paths = [write(folder, given, name=name, dataset="data.hdf5") for name, given in arguments.items()]
    for path in paths:  # the data are there already, so that loading them makes no environment
        mine = tasks.get(path)
        datasets.prepare(mine, "smoke", settings.for_task("smoke", mine.settings).data)
    monkeypatch.setattr(environments, "_TRIED", set())
    monkeypatch.setattr(environments, "TRIED_STEPS", tried)
    command = ["aepo", "evaluate", "--task", ",".join(paths), "--methods", "bc", "--seeds", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--profile", "smoke", "--runs-dir", "runs"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("aepo: ")]
    assert error[0].startswith(
        "aepo: [1/2] first: the environment odd_environments:odd/Odd-v0 of task first failed in "
    )
    assert "(RuntimeError: unstable simulation)" in error[0]
    assert error[1:] == ["aepo: 1 of 2 tasks failed: first; call it again for these"]
    runs = folder / "runs" / "smoke"
    assert (runs / "first" / "behavior.safetensors").exists() == (tried == 5)
    assert not (runs / "first" / "returns.csv").exists()
    returns = results.read_returns(runs / "second" / "returns.csv")
    assert np.isfinite(returns["return"]).all()
