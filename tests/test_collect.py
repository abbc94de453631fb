"""Local collection: the recipes record what happened, the same from the same seed; the tracked actors are whole."""

import hashlib
import json
import runpy
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium_robotics.envs.maze import maps

from aepo import environments, files, settings
from aepo.data import collect, tasks, waypoint
from aepo.data.tasks import LOCAL, Task

ROOT = Path(__file__).parents[1]
GOAL_CELLS = {"UMaze": (1, 1), "Medium": (6, 6), "Large": (7, 9)}
MAPS = {"UMaze": maps.U_MAZE, "Medium": maps.MEDIUM_MAZE, "Large": maps.LARGE_MAZE, "Open": maps.OPEN}
D4RL_MAPS = {
    "UMaze": "##### #GOO# ###O# #OOO# #####",
    "Medium": "######## #OO##OO# #OO#OOO# ##OOO### #OO#OOO# #O#OO#O# #OOO#OG# ########",
    "Large": "############ #OOOO#OOOOO# #O##O#O#O#O# #OOOOOO#OOO# #O####O###O# #OO#O#OOOOO# ##O#O#O#O### "
    "#OO#OOO#OGO# ############",
}
ENVIRONMENTS = sorted(json.loads(path.read_text())["env_id"] for path in collect.ACTORS.glob("*/training.json"))


def local_task(env_id, recipe, horizon, **more):
    return Task(
        "local-test", "local", LOCAL, {"smoke": "aepo/local/test-smoke-v0"}, env_id, horizon, recipe=recipe, **more
    )


def evaluation_kwargs(name):
    maze = [list(row) for row in MAPS[name]]
    row, column = GOAL_CELLS[name]
    maze[row][column] = "g"
    return {"maze_map": maze, "continuing_task": True, "reset_target": False}


def pointmaze(name="UMaze", dense=False):
    return local_task(
        f"PointMaze_{name}{'Dense' * dense}-v3", "pointmaze", 300, env_kwargs=evaluation_kwargs(name), continuing=True
    )


def actor_task(env_id="Reacher-v5", tier="mixed"):
    return local_task(env_id, "actors", gym.spec(env_id).max_episode_steps, tier=tier)


def bytes_of(episodes):
    digest = hashlib.sha256()
    for episode in episodes:
        parts = episode.observations
        for array in [parts] if isinstance(parts, np.ndarray) else [parts[key] for key in sorted(parts)]:
            digest.update(array.tobytes())
        for array in (episode.actions, episode.rewards, episode.terminations, episode.truncations):
            digest.update(array.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("task", [tasks.get("maze2d-umaze"), pointmaze(), actor_task()], ids=lambda task: task.recipe)
def test_the_same_seed_gives_the_same_bytes(task):
    first, again, other = (collect.RECIPES[task.recipe](task, 700, seed) for seed in (3, 3, 4))
    assert bytes_of(first) == bytes_of(again) != bytes_of(other)
    assert sum(len(episode) for episode in first) == 700


@pytest.mark.parametrize("dense", [False, True])
def test_pointmaze_segments_end_at_the_success_and_keep_their_goal(dense):
    segments = collect.RECIPES["pointmaze"](pointmaze(dense=dense), 1500, 0)
    assert len(segments) > 5
    for i, segment in enumerate(segments):
        states, goals = segment.observations["observation"], segment.observations["desired_goal"]
        assert np.array_equal(segment.observations["achieved_goal"], states[:, :2])
        assert len(states) == len(goals) == len(segment.actions) + 1
        assert (goals == goals[0]).all()
        distance = np.linalg.norm(states[1:, :2] - goals[1:], axis=1)
        assert np.allclose(segment.rewards, np.exp(-distance) if dense else distance <= 0.45)
        assert (distance[:-1] > 0.45).all()
        assert segment.truncations[-1]
        assert not segment.truncations[:-1].any()
        assert not segment.terminations.any()
        assert (np.abs(segment.actions) <= 1).all()
        if i < len(segments) - 1:
            assert distance[-1] <= 0.45
            following = segments[i + 1].observations
            assert np.array_equal(following["observation"][0], states[-1])  # the ball is where it was, the goal is new
            assert not np.array_equal(following["desired_goal"][0], goals[0])


def test_pointmaze_transitions_are_the_simulator_s():
    """Each recorded state follows from the one before and the action: set there, a fresh simulator goes the same way."""
    segment = collect.RECIPES["pointmaze"](pointmaze(), 60, 1)[0]
    env = environments.without_file("PointMaze_UMaze-v3").unwrapped
    env.reset(seed=0)
    states = segment.observations["observation"]
    for state, action, following in zip(states, segment.actions, states[1:], strict=False):
        env.point_env.set_state(state[:2], state[2:])
        assert np.allclose(env.step(action)[0]["observation"], following, atol=1e-6)


def test_pointmaze_goals_are_all_over_the_maze():
    segments = collect.RECIPES["pointmaze"](pointmaze(), 3000, 0)
    maze = environments.without_file("PointMaze_UMaze-v3").unwrapped.maze
    cells = {tuple(maze.cell_xy_to_rowcol(segment.observations["desired_goal"][0])) for segment in segments}
    assert len(cells) == 7


@pytest.mark.parametrize("name", GOAL_CELLS)
def test_maze2d_goals_are_d4rl_s(name):
    rows = D4RL_MAPS[name].split()
    assert [[int(letter == "#") for letter in row] for row in rows] == MAPS[name]
    row, column = GOAL_CELLS[name]
    assert rows[row][column] == "G"


@pytest.mark.parametrize("name", ["UMaze", "Large"])
def test_controller_and_random_policy_bracket_the_scores(name, monkeypatch):
    """Under the official evaluation (one goal, kept): Minari's own numbers are 13 and 219 of 300, 4 and 462 of 800."""
    task = replace(pointmaze(name), horizon=gym.spec(f"PointMaze_{name}-v3").max_episode_steps)
    monkeypatch.setattr(waypoint, "REFERENCE_EPISODES", 5)
    low, high, origin = waypoint.maze_references(task, 0)
    assert low < 60
    assert high > 0.5 * task.horizon
    assert "random" in origin


def test_a_pointmaze_dataset_goes_through_minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    from aepo.data import datasets

    monkeypatch.setattr(waypoint, "REFERENCE_EPISODES", 1)
    task = tasks.get("local-pointmaze-umaze")
    stored = minari.load_dataset(datasets.prepare(task, "smoke", settings.DataSettings(steps=400)))
    assert stored.total_steps == 400
    assert set(stored[0].observations) == {"observation", "achieved_goal", "desired_goal"}
    evaluation = stored.recover_environment(eval_env=True)
    assert evaluation.unwrapped.reset_target is False
    assert len(evaluation.unwrapped.maze.unique_goal_locations) == 1
    collecting = stored.recover_environment()
    assert collecting.unwrapped.reset_target is True
    assert len(collecting.unwrapped.maze.unique_goal_locations) == 7


def test_actor_episodes_end_where_the_environment_ends_them():
    task = actor_task("Hopper-v5", "mixed")
    episodes = collect.RECIPES["actors"](task, 3000, 0)
    assert sum(map(len, episodes)) == 3000
    ends = 0
    for episode in episodes:
        assert len(episode.observations) == len(episode.actions) + 1
        assert not episode.terminations[:-1].any()
        assert not episode.truncations[:-1].any()
        assert bool(episode.terminations[-1]) != bool(episode.truncations[-1])
        assert (np.abs(episode.actions) <= 1).all()
        ends += bool(episode.terminations[-1])
        # A hopper that fell: the last observation is the fallen one, not the first of the next episode.
        height, angle = episode.observations[-1][:2]
        assert bool(episode.terminations[-1]) == (height <= 0.7 or abs(angle) >= 0.2)
    assert ends > 3


@pytest.mark.parametrize(("steps", "count"), [(200_000, 10), (40_000, 4), (100_000, 10), (600, 1), (123_457, 12)])
def test_environments_share_whole_episodes_where_they_can(steps, count):
    assert collect._side_by_side(steps, 1000) == count


def test_replaying_the_actions_gives_the_recorded_episode():
    episode = collect.RECIPES["actors"](actor_task("InvertedPendulum-v5", "simple"), 300, 5)[0]
    env = gym.make("InvertedPendulum-v5")
    observation, _ = env.reset(seed=episode.seed)
    assert np.array_equal(observation, episode.observations[0])
    for i, action in enumerate(episode.actions):
        observation, reward, terminated, _, _ = env.step(action)
        assert np.array_equal(observation, episode.observations[i + 1])
        assert reward == episode.rewards[i]
        assert terminated == episode.terminations[i]


@pytest.mark.parametrize("env_id", ["Reacher-v5", "InvertedPendulum-v5"])
@pytest.mark.parametrize("tier", ["simple", "medium", "expert"])
def test_tiers_return_what_their_training_measured(env_id, tier):
    (checkpoint,) = collect.tier_checkpoints(env_id, tier)
    row = collect.training(env_id)["checkpoints"][str(checkpoint)]
    script = runpy.run_path(Path(__file__).parents[1] / "scripts" / "train_behaviors.py")
    returns, _ = script["episode_returns"](env_id, collect.load_checkpoint(env_id, checkpoint), 20, seed=99)
    error = np.hypot(row["stochastic_std"], returns.std()) / np.sqrt(20)
    assert abs(returns.mean() - row["stochastic_mean"]) < 4 * error + 0.02 * abs(row["stochastic_mean"])


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_tracked_actors_are_whole(env_id):
    training = collect.training(env_id)
    assert training["env_id"] == env_id
    tiers = training["tiers"]
    used = {tiers["simple"], tiers["medium"], tiers["expert"], *tiers["mixed"]}
    folder = collect.ACTORS / env_id.split("-")[0].lower()
    assert (
        used == {int(path.stem) for path in folder.glob("*.safetensors")} == {int(s) for s in training["checkpoints"]}
    )
    rows = [training["checkpoints"][str(tiers[tier])] for tier in ("simple", "medium", "expert")]
    returns = [row["stochastic_mean"] for row in rows]
    assert training["random_return"] < returns[0] < returns[1] < returns[2]
    assert all(row["stochastic_per_step"] < rows[2]["stochastic_per_step"] for row in rows[:2]), (
        "an expert that is slower"
    )
    assert len(tiers["mixed"]) >= 10
    assert (min(tiers["mixed"]), max(tiers["mixed"])) == (0, training["curve"][-1]["steps"])
    kwargs = next(task.env_kwargs for task in tasks.suite("local") if task.env_id == env_id)
    space = gym.make(env_id, **kwargs).observation_space
    for checkpoint in used:
        actor = collect.load_checkpoint(env_id, checkpoint)
        actions = actor.act(np.zeros((3, *space.shape)), np.random.default_rng(0))
        assert actions.dtype == np.float32
        assert (actions >= actor.low).all()
        assert (actions <= actor.high).all()
    assert collect.reference_scores(actor_task(env_id, "expert"), 0)[1] > training["random_return"]


@pytest.mark.parametrize("robot", ["ant", "halfcheetah", "hopper", "walker2d"])
def test_tiers_are_what_they_are_named(robot):
    """Shares of D4RL's expert reference: simple 10 to 25%, medium a third to a half, expert the best of the curve."""
    training = json.loads((collect.ACTORS / robot / "training.json").read_text())
    low, high = training["random_return"], tasks.get(f"d4rl-{robot}-medium-v2").references[1]
    mean = {
        tier: training["checkpoints"][str(training["tiers"][tier])]["stochastic_mean"]
        for tier in training["tier_shares"]
    }
    shares = {tier: (value - low) / (high - low) for tier, value in mean.items()}
    assert shares == pytest.approx(training["tier_shares"], abs=1e-3)
    assert 0.1 <= shares["simple"] <= 0.25
    assert 1 / 3 <= shares["medium"] <= 1 / 2
    line = next(line for line in (ROOT / "docs/data.md").read_text().splitlines() if line.startswith(f"| {robot} |"))
    assert f"{mean['expert']:,.0f}, {100 * mean['expert'] / high:.0f}%" in line


def test_tracked_actors_are_small():
    assert sum(path.stat().st_size for path in collect.ACTORS.rglob("*")) < 12e6


def test_medium_expert_is_half_and_half():
    task = actor_task("Reacher-v5", "medium-expert")
    medium, expert = collect.tier_checkpoints(task.env_id, "medium-expert")
    episodes = collect.RECIPES["actors"](task, 1000, 0)
    half = np.cumsum([len(episode) for episode in episodes]).tolist().index(500)
    for checkpoint, part in ((medium, episodes[: half + 1]), (expert, episodes[half + 1 :])):
        row = collect.training(task.env_id)["checkpoints"][str(checkpoint)]
        returns = [episode.rewards.sum() for episode in part]
        assert np.mean(returns) == pytest.approx(row["stochastic_mean"], abs=2 * row["stochastic_std"])


def test_unknown_tier_and_missing_actors_are_said_in_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(files.StudyError, match=r"^unknown tier 'novice' for Reacher-v5: choose one of expert, medium"):
        collect.RECIPES["actors"](actor_task(tier="novice"), 100, 0)
    with pytest.raises(files.StudyError, match=r"no behavior policies for Humanoid-v5 .*train_behaviors.py humanoid$"):
        collect.RECIPES["actors"](actor_task("Humanoid-v5"), 100, 0)


def test_a_changed_actor_is_refused(tmp_path, monkeypatch):
    source = collect.ACTORS / "reacher"
    target = tmp_path / "reacher"
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    checkpoint = collect.tier_checkpoints("Reacher-v5", "expert")[0]
    path = target / f"{checkpoint}.safetensors"
    path.write_bytes(path.read_bytes()[:-2] + b"\0\1")
    monkeypatch.setattr(collect, "ACTORS", tmp_path)
    with pytest.raises(files.StudyError, match="is missing or changed: restore it from the repository"):
        collect.load_checkpoint("Reacher-v5", checkpoint)
