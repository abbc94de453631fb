"""The numbers of docs/results.md are those of the raw episodes."""

import importlib.util
import re
from pathlib import Path

import pytest

from aepo import settings
from aepo.data import tasks
from aepo.methods import NAMES
from aepo.study import results, tables
from aepo.study.ablations import TIMES, VARIANTS

ROOT = Path(__file__).parents[1]
BASELINES = {"bc", "bc-low-noise", "best-of-n", "qgpo", "qipo", "qipo-flow", "iql", "td3bc", "diffusion-ql"}
NUMBERS = [
    "", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip


def cells():
    """The tables of scores by task: (method, task, number)."""
    text = (ROOT / "docs" / "results.md").read_text().partition(tables.MARK)[2]
    found, head = [], []
    for line in text.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        name, *values = [cell.strip() for cell in line.strip("|").split("|")]
        if name == "task":
            head = values
        elif head and line.startswith("| `"):
            found += [
                (method.strip("`"), name.strip("` *"), value.strip("*"))
                for method, value in zip(head, values, strict=True)
            ]
    return found


def test_the_table_of_scores_is_that_of_the_raw_episodes():
    rows = results.read_returns(ROOT / "runs" / "results.csv")
    rows = rows[(rows["profile"] == "study") & (rows["variant"] == "")]
    checked = 0
    for method, task, shown in cells():
        if shown == "-":
            continue
        own = rows[(rows["method"] == method) & (rows["task"] == task)]["score"]
        assert f"{round(own.mean())}" == shown, (method, task)
        checked += 1
    assert checked >= 60


def test_the_interquartile_means_are_those_of_the_study():
    text = (ROOT / "docs" / "results.md").read_text().partition(tables.MARK)[2]
    scores = tables.seed_scores(tables.main_rows(ROOT / "runs" / "results.csv", "study"))
    chosen, shared = tables.comparable_groups(scores)[0]
    summary = tables.summary_table(scores, chosen, shared).set_index("method")
    found = re.findall(r"^\| `([\w-]+)` \| (-?\d+\.\d) \[", text, re.MULTILINE)
    shown = dict(reversed(found))  # the first table, of the methods that every task has
    assert {m: float(shown[m]) for m in chosen} == pytest.approx(summary["iqm"].round(1).to_dict())
    assert set(shown) <= set(NAMES)


def test_every_table_is_what_aepo_results_prints(tmp_path):
    document = ROOT / "docs" / "results.md"
    copy = tmp_path / "results.md"
    copy.write_text(document.read_text().partition(tables.MARK)[0] + tables.MARK + "\n\nolder tables\n")
    tables.write_document(copy, ROOT / "runs" / "results.csv", "study")
    assert copy.read_text() == document.read_text()
    assert copy.read_text().count("| --- |") >= 5


def test_the_settings_are_the_best_of_the_search():
    """By family; weighted cloning, and the recommended method with it, have one value for all tasks."""
    found = tables.search_table(tables.variant_scores(results.read_results(ROOT / "runs" / "results.csv"), "study"))
    values = {(method, v.number, v.times): v.settings for v in VARIANTS if v.number for method in v.methods}
    checked = 0
    for (method, number), rows in found[found["method"] != "bc-low-noise"].groupby(["method", "number"]):
        everywhere = method in ("bc-weighted", tables.claims()["recommended"])
        for family in [[*rows["family"]]] if everywhere else [[name] for name in rows["family"]]:
            own = rows[rows["family"].isin(family)]
            scores = {times: (own[times] * own["tasks"]).sum(min_count=1) for times in TIMES}
            scores = {times: score for times, score in scores.items() if score == score}
            task = settings.for_task("study", tasks.get(tasks.SEARCHED_ON[family[0]][0]).settings)
            level = []  # what is within a tenth of a point a task of the best
            for times in (times for times in scores if scores[times] > max(scores.values()) - 0.1 * own["tasks"].sum()):
                ((stage, entry),) = values[method, number, times].items()
                ((key, value),) = entry.items()
                level.append(value)
            chosen = getattr(getattr(task, stage), key)
            assert (chosen[method] if isinstance(chosen, dict) else chosen) in level, (method, number, family, scores)
            checked += 1
    assert checked >= 67


def test_what_the_readme_counts_is_so():
    """Where the guidance acts, where `aepo` is below cloning at low noise; means on all tasks, and with one more."""
    counted = dict(enumerate(NUMBERS)) | {20: "twenty", 30: "thirty"}
    counted |= {tens + one: f"{counted[tens]}-{counted[one]}" for tens in (20, 30) for one in range(1, 10)}
    rows = tables.main_rows(ROOT / "runs" / "results.csv", "study")
    wide = tables.score_matrix(tables.seed_scores(rows)).T
    returns = rows.set_index(["task", "seed", "episode", "method"])["return"].unstack()
    acts = (returns["aepo-weighted"] != returns["bc-weighted"])[returns["bc"].notna()].groupby(["task", "seed"]).any()
    whole = acts.groupby("task").all().sum()
    below = (wide["aepo"] < wide["bc-low-noise"]).sum()
    text = (ROOT / "README.md").read_text()
    assert f"It changes what is scored on {counted[whole]} of the {counted[len(wide)]} tasks" in text
    assert f"below cloning at low noise on {counted[below]} of the {counted[len(wide)]}" in text
    scores, named = tables.seed_scores(rows), ["aepo", "bc-low-noise", "aepo-shift", "aepo-weighted"]
    means = tables.summary_table(scores, named, list(wide.index)).set_index("method")["iqm"].round(1)[named]
    assert (
        "has {} on all tasks; cloning at low noise has {}, `aepo-shift` {}, `aepo-weighted` {}.".format(*means) in text
    )
    named, unseen = ["aepo-weighted", "bc-weighted", "qipo"], tables.not_looked_at(list(wide.index))
    means = (
        tables.summary_table(scores, named, [*unseen, "local-hopper-mixed"]).set_index("method")["iqm"].round(1)[named]
    )
    assert "for older settings alone: {}, `bc-weighted` {}, `qipo` {}.".format(*means) in text
    robots = [task for task in wide.index if tables.kind_of_task(task).startswith("robots")]
    means = tables.summary_table(scores, named, robots).set_index("method")["iqm"].round(1)[named]
    assert f"an IQM of {means.iloc[0]} over {len(robots)}, `bc-weighted` has {means.iloc[1]}" in text
    apart = (wide["aepo-weighted"] - wide["bc-weighted"])[unseen]
    assert sorted(apart[apart.abs() > 0].round().astype(int)) == [-2, 1, 8, 10, 52]
    assert "changes five: +52, +10 and +8 in the dense Maze2D mazes, +1 and -2 elsewhere" in text


def test_the_numbers_of_the_readme_are_those_of_the_tables():
    """Its table by kind of task, and each mean with an interval, stand in docs/results.md or are those of unseen tasks."""
    readme, printed = ((ROOT / name).read_text() for name in ("README.md", "docs/results.md"))
    section = readme.partition("\n## Results\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) >= 12
    assert all(row in printed for row in rows)
    means = re.findall(r"\d+\.\d \[-?\d+\.\d, \d+\.\d\]", readme)
    assert len(means) >= 2
    assert all(mean in printed for mean in means)


def test_the_first_table_of_the_readme_is_that_of_the_results():
    """IQM on all tasks and on those nobody looked at, where the recommended method is ahead of the best baselines too."""
    printed = (ROOT / "docs" / "results.md").read_text().partition(tables.MARK)[2].split("| method | IQM [95%] |")
    every, unseen = ({line.split("`")[1]: line for line in part.splitlines() if "] |" in line} for part in printed[1:3])
    first = (ROOT / "README.md").read_text().partition("| IQM [95%] |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines() if "`" in line]
    named = [re.findall(r"`([\w-]+)`", row[0])[0] for row in rows]
    best = [next(m for m in part if m in BASELINES) for part in (every, unseen)]  # the printed rows fall
    assert named == [tables.claims()["recommended"], *best, "aepo", "bc"]
    for name, (_, iqm, there, ahead) in zip(named, rows, strict=True):
        assert f" {iqm} |" in every[name]
        assert f" {there} |" in unseen[name]
        assert f" {ahead or '-'} |" in unseen[name]


def test_how_far_the_claim_hangs_on_its_tasks():
    rows = tables.main_rows(ROOT / "runs" / "results.csv", "study")
    scores = tables.seed_scores(rows[rows["method"].isin([tables.claims()["recommended"], "qipo"])])
    spec = importlib.util.spec_from_file_location("hangs_on", ROOT / "scripts" / "hangs_on.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (found,) = script.leads(scores).round(1).to_dict("records")
    shown = "{lead} [{low}, {high}]".format(**found)
    assert f"the lead over `qipo` is {shown}" in (ROOT / "README.md").read_text()
    assert f"| `qipo` | {shown} | {found['least']}, `{found['without']}` |" in (ROOT / "docs/results.md").read_text()
