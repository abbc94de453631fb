"""Policies and rollouts: shapes, the box, what an episode depends on; the tracked example."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from aepo import Policy, files, settings
from aepo.core import models, sampler
from aepo.data import datasets, tasks
from aepo.learners import behavior as behavior_stage
from aepo.learners import critics
from aepo.learners.actor import Acting, Actor
from aepo.methods import CORE, METHODS
from aepo.study import evaluation, results, runs, stages, statistics
from aepo.study.policy import load_actor

EXAMPLE = Path(__file__).parents[1] / "runs" / "example" / "maze2d-umaze"


@pytest.fixture
def behavior(data, tiny):
    _, behavior = behavior_stage.behavior_learner(data, (0, 3), tiny.behavior)
    return behavior


def test_an_episode_depends_on_its_seed_and_number_alone(behavior):
    def rollout(seeds, episodes):
        rows = [(0, 3).index(s) for s in seeds]
        actor = Actor(models.take_seeds(behavior, rows, 2), None, None, 0.0, 3, 1)
        vector = evaluation.Copies(tasks.get("maze2d-umaze"), len(seeds) * episodes)
        return evaluation.rollout(actor, vector, seeds, episodes, 25)

    many, few = rollout((0, 3), 3), rollout((3,), 2)
    assert np.allclose(many.states[:, 1, :2], few.states[:, 0], atol=1e-4)
    assert not np.allclose(many.states[0, 0, 0], many.states[0, 0, 1])
    assert many.length.tolist() == [[25] * 3] * 2


def test_episodes_in_rounds_are_those_played_at_once(behavior, tmp_path, monkeypatch):
    task = replace(tasks.get("maze2d-umaze"), horizon=6)
    actor = Actor(behavior, None, None, 0.0, 2, 1)
    play = lambda: evaluation.play(actor, task, (0, 3), 5, "test", tmp_path)  # noqa: E731
    monkeypatch.setattr(evaluation, "SHOWN_EPISODES", 3)
    at_once = play()
    monkeypatch.setattr(evaluation, "MOST_COPIES", {"aepo/Maze2D": 4})
    in_rounds = play()
    for name in ("returns", "length", "success", "states"):
        assert np.allclose(getattr(at_once, name), getattr(in_rounds, name), atol=1e-5), name
    assert at_once.states.shape == (7, 2, 3, 4)


def test_finished_episodes_earn_nothing_more(behavior):
    asked = []

    class Fake:
        action_dim, steps = 2, 0

        def reset(self, seeds):
            return np.zeros((4, 4))

        def step(self, which, actions):
            self.steps += 1
            asked.append(which.tolist())
            end = np.array([self.steps >= 2, False, False, self.steps >= 4])
            success = np.array([0, 0, self.steps == 3, 0])
            return np.full((len(which), 4), self.steps), np.ones(len(which)), end[which], success[which]

    result = evaluation.rollout(Actor(behavior, None, None, 0.0, 2, 1), Fake(), (0, 3), 2, 6)
    assert result.returns.tolist() == [[2, 6], [6, 4]]
    assert result.length.tolist() == [[2, 6], [6, 4]]
    assert result.success.tolist() == [[False, False], [True, False]]
    assert np.isnan(result.states[3:, 0, 0]).all()
    assert asked == [[0, 1, 2, 3]] * 2 + [[1, 2, 3]] * 2 + [[1, 2]] * 2


def test_best_of_n_takes_the_highest_advantage(behavior, data, tiny):
    _, critic = critics.critic_learner(data, (0, 3), tiny.critic)
    noise = torch.randn(2, 5, 8, 2, generator=torch.Generator().manual_seed(0))
    state = data.state[:5].expand(2, -1, -1)
    best = Actor(behavior, critic, None, 0.0, 3, 8).act(state, noise)
    singles = torch.stack(
        [Actor(behavior, None, None, 0.0, 3, 1).act(state, noise[:, :, i : i + 1]) for i in range(8)], 2
    )
    standard = behavior.standardize(state)
    scores = torch.stack([critic.advantage(standard, singles[:, :, i]) for i in range(8)], 2)
    expected = singles.gather(2, scores.argmax(2)[..., None, None].expand(-1, -1, 1, 2)).squeeze(2)
    assert torch.allclose(best, expected, atol=1e-5)


def test_rows_of_one_seed_at_several_scales_act_like_each_scale_alone(run, data, tiny):
    """What a curve over the guidance scale, and one scale a seed, are made of."""
    trained = stages.train_behavior(run, data)
    stages.train_energy(run, data, trained, stages.train_critic(run, data), "aepo")
    state, noise = data.state[:5].expand(3, -1, -1), torch.randn(3, 5, 1, 2)
    together = load_actor(run.folder, "aepo", [1, 1, 0], Acting(3.0, [0.0, 2.0, 4.0], 3), "cpu").act(state, noise)
    for i, (seed, scale) in enumerate([(1, 0.0), (1, 2.0), (0, 4.0)]):
        alone = load_actor(run.folder, "aepo", [seed], Acting(3.0, scale, 3), "cpu").act(
            state[i : i + 1], noise[i : i + 1]
        )
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


def test_without_initial_noise_a_state_has_one_action(behavior, data):
    state, noise = data.state[:5].expand(2, -1, -1), torch.randn(2, 2, 5, 1, 2)
    still, moved = (
        [Actor(behavior, None, None, 0.0, 3, 1, noise_scale=k).act(state, n) for n in noise] for k in (0, 1)
    )
    assert torch.equal(*still)
    assert not torch.allclose(*moved)


def test_sampling_starts_at_the_time_that_is_set(behavior, data):
    state, noise = data.state[:5].expand(2, -1, -1), torch.randn(2, 5, 1, 2)
    standard, inside = behavior.standardize(state), {"low": -1.0, "high": 1.0}
    for start in (1.0, 0.4):
        action = Actor(behavior, None, None, 0.0, 3, 1, t_start=start).act(state, noise)
        noise_model = lambda a, t: behavior.noise_net(standard, a, t)  # noqa: E731
        own = sampler.sample(noise_model, noise[:, :, 0], models.VP, 3, t_start=start, **inside)
        assert torch.equal(action, behavior.unscale(own))
    assert Acting.of({"beta": 1.0, "guidance_scale": 0.0, "solver_steps": 3, "t_start": 0.4}).t_start == 0.4


def test_a_loaded_policy_starts_from_the_noise_that_it_was_evaluated_with(run, data, tiny):
    stages.train_behavior(run, data)
    entry = {"beta": 0.0, "guidance_scale": 0.0, "solver_steps": 3, "candidates": 1, "seeds": [0, 1]}
    for noise, moves in ((0.0, False), (0.5, True)):
        runs.update_manifest(run.folder, "evaluation", "bc", entry | {"noise_scale": noise})
        policy = Policy.load(run.folder, "bc", device="cpu")
        one, other = (policy.act(data.state[:5].numpy(), torch.Generator().manual_seed(seed)) for seed in (0, 1))
        assert np.allclose(one, other) != moves
        assert policy.actor.noise_scale == noise


def test_guided_samples_start_from_little_noise_weighted_from_none_and_picked_ones_from_all():
    noise = settings.QUICK.evaluation.noise_scale
    assert {noise[m] for m in ("bc", "best-of-n", "qipo")} == {1.0}
    assert {noise[m] for m in {*settings.GUIDED, "bc-low-noise"} - {"aepo-weighted"}} == {0.25}
    assert {noise[m] for m in ("bc-weighted", "aepo-weighted")} == {0.0}
    assert set(noise) == set(METHODS)


@pytest.mark.parametrize("method", CORE)
def test_the_example_policy_acts(method):
    policy = Policy.load(EXAMPLE, method=method, device="cpu")
    states = np.random.default_rng(0).normal(size=(50, 4))
    actions = policy.act(states, torch.Generator().manual_seed(0))
    assert actions.shape == (50, 2)
    assert np.abs(actions).max() <= 1
    assert np.array_equal(actions, policy.act(states, torch.Generator().manual_seed(0)))
    assert policy.act(states[0]).shape == (2,)


def test_the_example_is_small_and_better_than_cloning():
    assert sum(path.stat().st_size for path in EXAMPLE.iterdir()) < 1_000_000
    vector = evaluation.Copies(tasks.get("maze2d-umaze"), 8)
    returns = {
        method: evaluation.rollout(Policy.load(EXAMPLE, method, device="cpu").actor, vector, [0], 8, 300).returns.mean()
        for method in ("bc", "aepo", "aepo-weighted")
    }
    assert returns["aepo-weighted"] > returns["aepo"] > 2 * returns["bc"]


@pytest.mark.parametrize(
    ("observations", "said"),
    [
        (np.zeros((3, 5)), r"shape \(3, 5\), expected \(N, 4\)"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.array([0, 0, np.nan, 0]), "NaN or infinity"),
    ],
)
def test_wrong_observations_are_refused(observations, said):
    with pytest.raises(ValueError, match=said):
        Policy.load(EXAMPLE, "bc", device="cpu").act(observations)


def test_load_says_what_is_missing(run):
    with pytest.raises(files.StudyError, match="unknown method 'sac'"):
        Policy.load(EXAMPLE, "sac")
    with pytest.raises(files.StudyError, match="there is no run folder"):
        Policy.load("runs/quick/nowhere")
    with pytest.raises(files.StudyError, match=r"holds seeds \[0\], not \[8\]"):
        Policy.load(EXAMPLE, "aepo", seed=8)
    with pytest.raises(files.StudyError, match=r"energy-aepo-b7\.safetensors is missing"):
        Policy.load(EXAMPLE, "aepo", beta=7.0)
    with pytest.raises(files.StudyError, match="no evaluation of 'aepo'"):
        Policy.load(run.folder, "aepo")


def test_a_policy_of_a_train_only_task_can_be_loaded(run):
    data, task = datasets.load(run.task, "smoke"), replace(run.task, env_id=None)
    only = replace(run, task=task, methods=("bc",))
    stages.train_behavior(only, data)
    assert set(results.write_returns(only, data)["method"]) == {"dataset"}
    assert Policy.load(only.folder, "bc").act(np.zeros(4)).shape == (2,)


def test_numbers_of_numpy_are_numbers():
    plain, numpy = (Policy.load(EXAMPLE, "aepo-cubature", beta=beta) for beta in (3.0, np.int64(3)))
    one, same = (policy.act(np.zeros(4), torch.Generator().manual_seed(0)) for policy in (plain, numpy))
    assert (one == same).all()


def test_the_memory_of_a_bootstrap_is_not_draws_times_episodes():
    """Recorded behavior can have tens of thousands of episodes."""
    tracemalloc.start()
    statistics.nested_bootstrap(np.arange(20_000.0).reshape(1, -1), draws=200)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_nested_bootstrap_on_cases_one_can_check_by_hand():
    import itertools

    assert statistics.nested_bootstrap(np.full((3, 4), 7.0)) == (7.0, 7.0, 7.0)
    # Two seeds of one episode each, returns 0 and 1: a redraw gives 0, 0.5, 0.5 or 1, so the interval is all of it.
    assert statistics.nested_bootstrap(np.array([[0.0], [1.0]])) == (0.5, 0.0, 1.0)
    grid = np.array([[0.0, 2.0], [4.0, 10.0]])
    exact = [
        np.mean([grid[s][e] for s, pair in zip(seeds, episodes, strict=True) for e in pair])
        for seeds in itertools.product(range(2), repeat=2)
        for episodes in itertools.product(itertools.product(range(2), repeat=2), repeat=2)
    ]
    mean, low, high = statistics.nested_bootstrap(grid, draws=20_000)
    assert mean == 4
    assert [low, high] == pytest.approx(np.percentile(exact, [2.5, 97.5]), abs=0.51)


def test_results_replace_their_own_rows_and_leave_others(run):
    import pandas as pd

    row = dict.fromkeys(results.COLUMNS, 0) | {"method": "bc", "variant": ""}
    run.folder.joinpath("returns.csv").write_text(pd.DataFrame([row, row]).to_csv(index=False))
    path = runs.results_path(run.folder.parents[1], run.profile_name)
    path.write_text(pd.DataFrame([{"profile": "quick", "task": "other"} | row]).to_csv(index=False))
    for _ in range(2):
        merged = results.merge_results(run)
    assert merged[["profile", "task"]].value_counts().to_dict() == {("quick", "other"): 1, ("smoke", "maze2d-umaze"): 2}


def test_results_keep_what_other_runs_of_the_task_made(run):
    """A run of fewer methods, as the README's first command is beside the tracked table, takes nothing away."""
    path, row = runs.results_path(run.folder.parents[1], run.profile_name), dict.fromkeys(results.COLUMNS, 0)
    of = {"profile": "smoke", "task": "maze2d-umaze"}
    rows = [of | row | {"method": m, "variant": v} for m, v in (("qgpo", ""), ("bc", ""), ("bc", "noise 0"))]
    path.write_text(pd.DataFrame(rows).to_csv(index=False))
    new = pd.DataFrame([row | {"method": "bc", "variant": v, "return": 5} for v in ("", "curve")])
    run.folder.joinpath("returns.csv").write_text(new.to_csv(index=False))
    merged = results.merge_results(run)
    assert merged[["method", "variant", "return"]].values.tolist() == [
        ["bc", "", 5], ["qgpo", "", 0], ["bc", "noise 0", 0]
    ]  # fmt: skip
    written = path.read_bytes()
    results.merge_results(run)
    assert path.read_bytes() == written, "a second merge changes nothing, so that a clone stays clean"


def test_a_table_that_is_none_of_the_study_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "results.csv").write_text("return,success,score,method\n1,1,1,bc\n")
    with pytest.raises(files.StudyError, match="has no column 'profile'"):
        results.read_results(tmp_path / "results.csv")


def test_the_readme_example_runs(tmp_path):
    readme = (EXAMPLE.parents[2] / "README.md").read_text()
    block = next(b.split("```")[0] for b in readme.split("```python\n")[1:] if "Policy.load" in b)
    exec(block.replace("guidance.png", str(tmp_path / "guidance.png")), {})
    assert (tmp_path / "guidance.png").stat().st_size > 10_000


def test_reading_and_writing_a_table_moves_no_digit(tmp_path):
    """Each merge into results.csv reads and writes the rows of all other tasks."""
    rows = pd.DataFrame({"return": np.random.default_rng(0).normal(size=2_000) * 1e3, "success": 1, "score": 0.1})
    rows.to_csv(tmp_path / "a.csv", index=False)
    results.read_returns(tmp_path / "a.csv").to_csv(tmp_path / "b.csv", index=False)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_smoke_run_is_no_result(tmp_path):
    assert runs.results_path(tmp_path, "smoke") == tmp_path / "smoke" / "results.csv"
    assert runs.results_path(tmp_path, "quick") == tmp_path / "results.csv"
