"""The tables of results, drawn from returns.csv or results.csv alone: `*_table` computes, `markdown_*` is for people."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from aepo.data.tasks import SEARCHED_ON
from aepo.files import StudyError, atomic_path, read_json
from aepo.methods import DATASET, NAMES
from aepo.study import statistics
from aepo.study.ablations import QUESTIONS, SEARCH, TIMES, VARIANTS
from aepo.study.results import read_results

NONE = (np.nan,) * 3  # no value, no interval
MARK = "<!-- below: what `aepo results` prints -->"
PUBLISHED = Path(__file__).with_name("published.csv")  # scores that papers report on D4RL: notebook 08


@cache
def claims() -> dict:
    """runs/claims.json: `starred`, the tasks looked at while settings were chosen; `recommended`, the method."""
    return {"starred": [], "recommended": ""} | read_json(Path(__file__).parents[2] / "runs" / "claims.json")


def task_table(returns: pd.DataFrame) -> pd.DataFrame:
    """Rows of one task -> a row a method: return and score with nested bootstrap intervals, success, seeds, episodes."""
    main, rows = returns[returns["variant"] == ""], []
    for method in (m for m in NAMES if m in set(main["method"])):
        part = main[main["method"] == method]
        row = {"method": method}
        for name in ("return", "score"):
            grid = part.pivot(index="seed", columns="episode", values=name).to_numpy()
            row |= _named(name, NONE if np.isnan(grid).any() else statistics.nested_bootstrap(grid))
        row |= {"success": part["success"].astype(float).mean(), "seeds": part["seed"].nunique(), "episodes": len(part)}
        rows.append(row)
    return pd.DataFrame(rows)


def _named(name: str, values: Sequence[float]) -> dict[str, float]:
    """A value and the ends of its interval as columns."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def readable_task_table(table: pd.DataFrame) -> pd.DataFrame:
    """`task_table` for people: intervals in brackets, one decimal; a dash for what the task does not have."""
    shown = table[["method", "return", "score", "success", "seeds", "episodes"]].astype({"return": str, "score": str})
    for name in ("return", "score"):
        shown[name] = [_interval(*row) for row in table[[name, f"{name}_low", f"{name}_high"]].to_numpy()]
    shown["success"] = ["-" if np.isnan(share) else f"{100 * share:.0f}%" for share in table["success"]]
    return shown


def _interval(value: float, low: float, high: float, *, digits: int = 1) -> str:
    """A value with its interval in brackets, or a dash."""
    return "-" if np.isnan(value) else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main_rows(path: Path, profile: str) -> pd.DataFrame:
    """Rows of a profile in results.csv, without ablations and curves; StudyError where there are none."""
    if not path.exists():
        raise StudyError(f"{path} is missing: run `make reproduce` or `aepo evaluate` first")
    rows = read_results(path)
    main = rows[(rows["profile"] == profile) & (rows["variant"] == "")]
    if main.empty:
        raise StudyError(f"{path} has no results of profile {profile!r}: run `make reproduce PROFILE={profile}` first")
    return main


def variant_scores(rows: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Mean score of each seed under every variant of each question, with the same methods `as evaluated` beside them."""
    rows = rows[rows["profile"] == profile]
    main = rows[rows["variant"] == ""].assign(variant="as evaluated")
    key, found = ["task", "method", "variant", "seed"], []
    for question in QUESTIONS:
        varied = rows[rows["variant"].isin([v.name for v in VARIANTS if v.question == question])]
        both = pd.concat([main.merge(varied[["task", "method"]].drop_duplicates()), varied])
        scores = both.groupby(key, as_index=False, sort=False)["score"].mean()
        found.append(scores.assign(question=question)[["question", *key, "score"]])
    return pd.concat(found, ignore_index=True)


def search_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The search of one number a method in `variant_scores`: mean score over a family's searched tasks at each of TIMES."""
    facts, found = [(v.name, v.number, v.times) for v in VARIANTS if v.question in SEARCH], []
    rows = scores.merge(pd.DataFrame(facts, columns=["variant", "number", "times"]), on="variant")
    for family, tasks in SEARCHED_ON.items():
        for (method, number), own in rows[rows["task"].isin(tasks)].groupby(["method", "number"], sort=False):
            wide = own.pivot_table(index="task", columns="times", values="score")
            asked = {v.times for v in VARIANTS if v.number == number and method in v.methods}
            if asked == {*wide} and len(wide := wide.dropna()):
                found.append([family, method, number, len(wide), *wide.mean().reindex(TIMES)])
    return pd.DataFrame(found, columns=["family", "method", "number", "tasks", *TIMES])


def markdown_search(table: pd.DataFrame) -> str:
    """`search_table` for people, the best value of a row in bold."""
    values = table[[*TIMES]]
    shown = _bold(values, values.eq(values.max(axis=1), axis=0), 1)
    on, methods = table["family"] + ", " + table["tasks"].astype(str), "`" + table["method"] + "`"
    head = ["searched on", "method", "number", *(str(Fraction(times)) for times in TIMES)]
    return markdown_table(head, pd.concat([on, methods, table["number"], shown], axis=1).to_numpy())


def _bold(values: pd.DataFrame, best: pd.DataFrame, digits: int) -> pd.DataFrame:
    """Numbers as text, the best in bold, a dash where there is none."""
    text = (values.round(digits) + 0.0).map(f"{{:.{digits}f}}".format)  # + 0.0: no minus before a zero
    return text.mask(best, "**" + text + "**").mask(values.isna(), "-")


def seed_scores(main: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each seed over its episodes: columns task, method, seed, score; tasks without scores are left out."""
    return main.groupby(["task", "method", "seed"], as_index=False)["score"].mean().dropna()


def scores_by_task(scores: pd.DataFrame, method: str, tasks: Sequence[str]) -> list[np.ndarray]:
    """A method's scores of each task, arrays `(seeds,)`."""
    own = scores[scores["method"] == method]
    return [own[own["task"] == task]["score"].to_numpy() for task in tasks]


def comparable_groups(scores: pd.DataFrame) -> list[tuple[list[str], list[str]]]:
    """Methods with the tasks they share: those that every task has; then, if more, all on the tasks that have them all."""
    wide = score_matrix(scores).drop(index=DATASET, errors="ignore")
    parts = (part for part in (wide.dropna(), wide.dropna(axis="columns")) if part.size)
    found = [(list(part.index), list(part.columns)) for part in parts]
    return found[:1] if found[1:] == found[:1] else found


def not_looked_at(tasks: Sequence[str]) -> list[str]:
    """Those of some tasks that were not looked at while settings were chosen; empty where that is none or all of them."""
    found = [task for task in tasks if task not in claims()["starred"]]
    return found if len(found) < len(tasks) else []


def score_matrix(scores: pd.DataFrame) -> pd.DataFrame:
    """Methods by tasks: mean score over seeds; empty where a method was not run."""
    wide = scores.groupby(["method", "task"])["score"].mean().unstack("task")
    return wide.reindex([m for m in NAMES if m in wide.index])


def markdown_scores(scores: pd.DataFrame, methods: Sequence[str]) -> str:
    """Tasks by those methods: mean score over seeds, a task's best in bold, a dash: not run; a star: looked at."""
    wide = score_matrix(scores).T.round()
    best = wide.drop(columns=DATASET, errors="ignore").max(axis=1)
    wide = wide[[method for method in wide if method in methods]].dropna(how="all")
    shown = _bold(wide, wide.eq(best[wide.index], axis=0), 0)
    rows = [[f"`{row[0]}`{' *' if row[0] in claims()['starred'] else ''}", *row[1:]] for row in shown.itertuples()]
    return markdown_table(["task", *(f"`{method}`" for method in wide)], rows)


def summary_table(scores: pd.DataFrame, methods: Sequence[str], tasks: Sequence[str]) -> pd.DataFrame:
    """One row a method on tasks that all of them have: iqm, mean, rank; `ahead`: how far the recommended method is ahead of
    it, `p`: the probability that a run of the recommended one beats one of it."""
    best = claims()["recommended"]
    runs = {method: scores_by_task(scores, method, tasks) for method in methods}
    means = np.array([[task.mean() for task in runs[method]] for method in methods])
    rows = []
    for method, rank, mean in zip(methods, stats.rankdata(-means, axis=0).mean(1), means.mean(1), strict=True):
        row = {"method": method, "mean": mean, "rank": rank} | _named("iqm", statistics.aggregate(runs[method]))
        for name, compare in (("ahead", statistics.difference), ("p", statistics.improvement)):
            known = best in methods and method != best
            row |= _named(name, compare(runs[best], runs[method]) if known else NONE)
        rows.append(row)
    return pd.DataFrame(rows).sort_values("iqm", ascending=False, ignore_index=True)


def markdown_summary(table: pd.DataFrame) -> str:
    """`summary_table` for people."""
    rows, best = [], f"`{claims()['recommended']}`"
    for row in table.to_dict("records"):
        iqm, ahead, chance = ([row[f"{name}{end}"] for end in ("", "_low", "_high")] for name in ("iqm", "ahead", "p"))
        shown = [f"`{row['method']}`", _interval(*iqm), f"{row['mean']:.1f}", f"{row['rank']:.1f}"]
        rows.append([*shown, _interval(*ahead), _interval(*chance, digits=2)])
    return markdown_table(["method", "IQM [95%]", "mean", "mean rank", f"{best} ahead by", f"P({best} > it)"], rows)


def kind_of_task(task: str) -> str:
    """Mazes, robots of ours by what recorded their data (`robots, mixed` of local-hopper-mixed), or other."""
    return "mazes" if "maze" in task else f"robots, {task.split('-', 2)[2]}" if task.startswith("local-") else "other"


def markdown_kinds(scores: pd.DataFrame, methods: Sequence[str], tasks: Sequence[str]) -> str:
    """Methods, by kinds of the tasks that all have ("other" in all alone): IQM over tasks x seeds, the best in bold."""
    kinds = {"all": list(tasks)}
    for task in (task for task in tasks if kind_of_task(task) != "other"):
        kinds.setdefault(kind_of_task(task), []).append(task)
    table = pd.DataFrame(index=pd.Index(methods))
    for kind, of_kind in kinds.items():
        runs = (np.concatenate(scores_by_task(scores, method, of_kind)) for method in methods)
        table[f"{kind} ({len(of_kind)})"] = [statistics.interquartile_mean(values) for values in runs]
    table = table.sort_values(f"all ({len(tasks)})", ascending=False)
    rows = [[f"`{row[0]}`", *row[1:]] for row in _bold(table, table == table.max(), 1).itertuples()]
    return markdown_table(["IQM by kind of task", *table.columns], rows)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, readable as it is."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def markdown_study(main: pd.DataFrame) -> str:
    """The tables as text: score by task (methods that only some tasks have apart), a summary a group of methods."""
    scores = seed_scores(main)
    if scores.empty:
        return f"no scores: {', '.join(sorted(main['task'].unique()))} without reference returns"
    groups = comparable_groups(scores)
    everywhere = [DATASET, *(groups[0][0] if groups else ())]
    others = [method for method in scores["method"].unique() if method not in everywhere]
    parts = [markdown_scores(scores, methods) for methods in (everywhere, others) if methods]
    for first, (methods, tasks) in zip((True, False), groups, strict=False):
        parts.append(f"{len(methods)} methods on {len(tasks)} tasks: {', '.join(tasks)}")
        parts.append(markdown_summary(summary_table(scores, methods, tasks)))
        if apart := not_looked_at(tasks):
            parts.append(f"The same on the {len(apart)} of them that were not looked at while settings were chosen:")
            parts.append(markdown_summary(summary_table(scores, methods, apart)))
        if first and len({kind_of_task(task) for task in tasks}) > 1:
            parts.append(markdown_kinds(scores, methods, tasks))
    return "\n\n".join(parts)


def markdown_results(path: Path, profile: str) -> str:
    """All tables of a profile in results.csv: the study's, and the search of one number a method where there is one."""
    found, search = markdown_study(main_rows(path, profile)), search_table(variant_scores(read_results(path), profile))
    return f"{found}\n\nThe search of one number a method:\n\n{markdown_search(search)}" if len(search) else found


def write_document(document: Path, path: Path, profile: str) -> None:
    """Put `markdown_results` into a document in place of what stands below its line MARK; what stands above stays."""
    above, mark, _ = document.read_bytes().partition(MARK.encode()) if document.is_file() else (b"", b"", b"")
    if not mark:
        raise StudyError(f"{document} has no line {MARK}: the tables go below it")
    with atomic_path(document) as temporary:
        temporary.write_bytes(above + f"{MARK}\n\n{markdown_results(path, profile)}\n".encode())
