"""Each statistic on scores that a reader checks by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from aepo.study import result_figures, statistics, tables


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    assert statistics.interquartile_mean(np.array([0.0, 1, 2, 100])) == 1.5
    assert (
        statistics.interquartile_mean(np.array([[-50.0, 10, 20], [30, 40, 1000]])) == 25
    )  # six values: one off each end


def test_the_aggregate_of_constant_tasks_has_no_width():
    assert statistics.aggregate([np.array([1.0, 1]), np.array([3.0, 3])]) == (2, 2, 2)


def test_the_bootstrap_redraws_seeds_within_tasks():
    """Two seeds 0 and 4 beside a constant task of 2: the IQM of {0 or 4, 0 or 4, 2, 2} lies in [1, 3], where mixing tasks
    would reach 0 and 4."""
    value, low, high = statistics.aggregate([np.array([0.0, 4.0]), np.array([2.0, 2.0])])
    assert (value, low, high) == (2, 1, 3)


def test_the_probability_of_improvement_counts_pairs_and_ties():
    own, other = [np.array([1.0, 3.0])], [np.array([2.0, 3.0])]
    assert statistics.improvement(own, other)[0] == (0 + 0 + 1 + 0.5) / 4
    better = [np.array([5.0, 6.0]), np.array([0.0, 0.0])]
    worse = [np.array([1.0, 2.0]), np.array([9.0, 9.0])]
    assert statistics.improvement(better, worse) == (0.5, 0.5, 0.5)


def test_a_performance_profile_weighs_tasks_alike():
    scores = [np.array([10.0]), np.array([0.0, 10.0, 20.0, 30.0])]
    figure = result_figures.performance_profiles({"bc": scores})
    share = dict(zip(*figure.axes[0].lines[0].get_data(), strict=True))
    assert [share[threshold] for threshold in (0.0, 7.5, 15.0, 30.0)] == [0.875, 0.875, 0.25, 0.0]
    plt.close(figure)


def test_ranks_share_ties():
    means = {"a": (3.0, 2.0, 1.0), "b": (1.0, 1.0, 5.0)}
    methods = ["bc", "qgpo", "aepo"]
    scores = pd.DataFrame(
        {"task": task, "method": method, "seed": 0, "score": mean}
        for task, row in means.items()
        for method, mean in zip(methods, row, strict=True)
    )
    ranks = tables.summary_table(scores, methods, ["a", "b"]).set_index("method")["rank"]
    assert ranks[methods].tolist() == [1.75, 2.25, 2.0]


@pytest.fixture
def rows():
    """Two tasks, three methods, one of which misses a task; two seeds of two episodes."""
    made = []
    for task, methods in {"a": ("bc", "qgpo", "aepo"), "b": ("bc", "aepo")}.items():
        for k, method in enumerate(methods):
            made += [
                {"task": task, "method": method, "seed": seed, "episode": e, "score": 10.0 * k + seed + e}
                for seed in (0, 1)
                for e in (0, 2)
            ]
    return pd.DataFrame(made)


def test_means_compare_methods_on_the_tasks_that_they_share(rows):
    scores = tables.seed_scores(rows)
    assert scores[(scores["task"] == "a") & (scores["method"] == "qgpo")]["score"].tolist() == [11.0, 12.0]
    assert tables.comparable_groups(scores) == [(["bc", "aepo"], ["a", "b"]), (["bc", "qgpo", "aepo"], ["a"])]
    summary = tables.summary_table(scores, ["bc", "aepo"], ["a", "b"]).set_index("method")
    assert summary["mean"].to_dict() == {"aepo": 16.5, "bc": 1.5}
    assert summary["rank"].to_dict() == {"aepo": 1.0, "bc": 2.0}


def test_tasks_without_scores_and_methods_without_common_tasks_are_said(rows, tmp_path):
    unscored = rows.assign(score=np.nan)
    assert tables.markdown_study(unscored) == "no scores: a, b without reference returns"
    assert result_figures.draw_study(unscored, tmp_path) == []
    apart = rows[(rows["task"] == "a") == (rows["method"] == "qgpo")].query("method != 'bc'")
    assert set(zip(apart["task"], apart["method"], strict=True)) == {("a", "qgpo"), ("b", "aepo")}
    assert tables.comparable_groups(tables.seed_scores(apart)) == []
    assert "| `a` | 12 | - |" in tables.markdown_study(apart).replace("**", "")
    assert result_figures.draw_study(apart, tmp_path)


def test_a_task_of_one_seed_has_an_interval_beside_one_of_several():
    value, low, high = statistics.aggregate([np.array([5.0]), np.array([1.0, 2.0, 9.0])])
    assert low <= value <= high
    assert low < high
    better, low, high = statistics.improvement([np.array([5.0])] * 2, [np.array([4.0]), np.array([4.0, 6.0])])
    assert (better, low, high) == (0.75, 0.5, 1.0)


def test_seeds_are_redrawn_in_pairs():
    """A method that is 4 ahead in every seed is 4 ahead, however far apart seeds are, and runs that are the same tie."""
    scores = [np.array([0.0, 20.0, 40.0]), np.array([7.0, 3.0, 90.0])]
    assert statistics.difference([task + 4 for task in scores], scores) == pytest.approx((4, 4, 4))
    assert statistics.improvement(scores, scores) == (0.5, 0.5, 0.5)


def test_the_studys_figures_are_drawn_from_its_rows_alone(rows, tmp_path):
    drawn = result_figures.draw_study(rows, tmp_path)
    assert {path.name for path in drawn} >= {"08_study_scores.png", "08_study_iqm.png", "08_study_profiles.png"}
    assert all(path.stat().st_size > 5_000 for path in drawn)
    assert "3 methods on 1 tasks: a" in tables.markdown_study(rows)


def test_tasks_that_were_not_looked_at_have_means_of_their_own(rows, tmp_path):
    starred = rows[rows["method"] != "qgpo"].replace({"task": {"b": tables.claims()["starred"][0]}})
    assert tables.not_looked_at(["a", tables.claims()["starred"][0]]) == ["a"]
    assert tables.not_looked_at(["a", "b"]) == tables.not_looked_at([tables.claims()["starred"][0]]) == []
    parts = tables.markdown_study(starred).split("\n\n")
    alone = parts[parts.index("The same on the 1 of them that were not looked at while settings were chosen:") + 1]
    assert alone == tables.markdown_summary(tables.summary_table(tables.seed_scores(starred), ["bc", "aepo"], ["a"]))
    assert "not looked at" not in tables.markdown_study(rows)
    looked_at = rows[rows["task"] == "a"].replace({"task": {"a": tables.claims()["starred"][0]}})
    text = tables.markdown_study(pd.concat([rows, looked_at]))  # bc and aepo on three tasks, qgpo on two
    assert (
        text.index("The same on the 2 of them") < text.index("3 methods on 2") < text.index("The same on the 1 of them")
    )
    assert tmp_path / "08_study_iqm_unseen.png" in result_figures.draw_study(starred, tmp_path)
    assert tmp_path / "08_study_iqm_unseen.png" not in result_figures.draw_study(rows, tmp_path)


def test_means_by_kind_of_task(rows):
    named = rows[rows["method"] != "qgpo"].replace({"task": {"a": "maze2d-umaze", "b": "local-hopper-medium-expert"}})
    assert [tables.kind_of_task(t) for t in ("local-pointmaze-large", "local-pusher-mixed", "door-human-v2")] == [
        "mazes",
        "robots, mixed",
        "other",
    ]
    parts = tables.markdown_study(named).split("\n\n")
    (table,) = (part for part in parts if part.startswith("| IQM by kind of task"))
    assert table.splitlines() == [
        "| IQM by kind of task | all (2) | robots, medium-expert (1) | mazes (1) |",
        "| --- | --- | --- | --- |",
        "| `aepo` | **16.5** | **11.5** | **21.5** |",
        "| `bc` | 1.5 | 1.5 | 1.5 |",
    ]
    assert "by kind of task" not in tables.markdown_study(rows)
    one = tables.markdown_study(named.replace({"task": {"local-hopper-medium-expert": "door-human-v2"}}))
    assert "| IQM by kind of task | all (2) | mazes (1) |" in one  # two tasks that are nothing alike have no mean


def test_methods_that_only_some_tasks_have_get_a_table_of_their_own(rows):
    everywhere, others = tables.markdown_study(rows).split("\n\n")[:2]
    assert everywhere.splitlines() == [
        "| task | `bc` | `aepo` |", "| --- | --- | --- |", "| `a` | 2 | **22** |", "| `b` | 2 | **12** |"
    ]  # fmt: skip
    assert others.splitlines() == ["| task | `qgpo` |", "| --- | --- |", "| `a` | 12 |"]


def test_how_far_the_recommended_method_is_ahead(rows, monkeypatch):
    value, low, high = statistics.difference([np.array([5.0, 6.0])] * 2, [np.array([1.0])] * 2)  # no pairs of seeds
    assert value == 4.5
    assert 4 <= low < 4.5 < high <= 5
    monkeypatch.setattr(tables, "claims", lambda: {"starred": [], "recommended": "aepo"})
    scores = tables.seed_scores(rows)
    table = tables.summary_table(scores, ["bc", "aepo"], ["a", "b"]).set_index("method")
    assert table.loc["bc", "ahead"] == pytest.approx(table.loc["aepo", "iqm"] - table.loc["bc", "iqm"])
    assert table.loc["bc", "ahead"] > 0
    assert table.loc["bc", "p"] > 0.5
    assert np.isnan(table.loc["aepo", ["ahead", "p"]].astype(float)).all()
    assert "`aepo` ahead by" in tables.markdown_summary(table.reset_index())
