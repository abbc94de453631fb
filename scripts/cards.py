"""The cards of the exported policies, policies/<task>/README.md, and their table in docs/policies.md.

python scripts/cards.py: from each folder's manifest and networks, runs/results.csv and runs/claims.json, nothing by hand.
"""

from pathlib import Path

import pandas as pd

from aepo import Policy, files
from aepo.data import tasks
from aepo.data.tasks import Task
from aepo.learners.actor import AGREED
from aepo.methods import DATASET, METHODS
from aepo.study import runs, tables

ROOT = Path(__file__).parents[1]
POLICIES, DOCUMENT = ROOT / "policies", ROOT / "docs" / "policies.md"
MARK = "<!-- below: what scripts/cards.py writes -->"
PROFILE = "study"
CORRELATED = f"{AGREED / (1 + AGREED):.2f}".removeprefix("0")  # as a correlation of the twins
CARD = """# {task}: {method}, seed {seed}

A policy of [the AEPO study](../../README.md), trained on recorded data alone by `{method}` ({source}). [What these folders are](../../docs/policies.md).

{facts}

## Scores

{scores}

The interval redraws seeds, then episodes within each (`aepo.study.statistics.nested_bootstrap`); {intervals}. Rows: `runs/results.csv`, profile `{profile}`.

## Commands

Trained, exported, and this card written:

```
aepo evaluate --task {task} --profile {profile} --methods {method}
aepo export runs/{profile}/{task} policies/{task} --seed {seed} --methods {method}
python scripts/cards.py
```

Loaded, in a checkout after `make setup`:

```python
from aepo import Policy, environments
from aepo.data import tasks

policy = Policy.load("policies/{task}")
env = environments.make(tasks.get("{task}"))
state, _ = env.reset(seed=0)
print(policy.act(state))
```

Without this package: `python scripts/export_graph.py policies/{task} policy.pt2` writes a graph that torch alone runs.

## Limits

{limits}
"""  # noqa: E501


class Exported:
    """One exported policy: what its manifest, its networks and the study's table say of it."""

    def __init__(self, folder: Path, main: pd.DataFrame):
        manifest = runs.read_manifest(folder)
        ((self.method, self.evaluation),) = manifest["evaluation"].items()
        ((self.dataset_id, self.data),) = manifest["data"].items()
        self.task: Task = tasks.get(folder.name)
        self.stages, self.actor = manifest["stages"], Policy.load(folder, device="cpu").actor
        self.acting = self.stages[runs.stages_of(self.method, self.evaluation["beta"])["behavior"]]
        (self.seed,) = self.acting["seeds"]
        self.rows = main[main["task"] == self.task.name]
        everyone = self.rows[self.rows["method"] == self.method]
        self.own = everyone[everyone["seed"] == self.seed]
        self.by_seed = everyone.groupby("seed")["return"].mean()

    @property
    def agreement(self) -> float:
        """Correlation of the twin critics over actions, of this seed."""
        ratio = self.actor.behavior.agreement.item()
        return ratio / (1 + ratio)

    def scores(self) -> list[list[str]]:
        """Return and score with intervals, success and episodes: of the data, of all seeds of the method, of this one."""
        seeds = len(self.by_seed)
        shown = {
            "recorded data": self.rows[self.rows["method"] == DATASET],
            f"`{self.method}`, {seeds} seeds": self.rows[self.rows["method"] == self.method],
            f"this policy, seed {self.seed}": self.own,
        }
        made = [(name, tables.readable_task_table(tables.task_table(rows)).iloc[0]) for name, rows in shown.items()]
        return [[name, *map(str, row[["return", "score", "success", "episodes"]])] for name, row in made]


def facts(it: Exported) -> str:
    """What the policy is and was made of, a row each."""
    task, own, behavior = it.task, it.acting["settings"], it.actor.behavior
    critic = it.stages["critic"]["settings"]
    low, high = (sorted({*edge.flatten().tolist()}) for edge in (behavior.low, behavior.high))
    box = f"{low[0]:g} to {high[0]:g}" if len(low) == len(high) == 1 else "its action box"
    parts = f" ({', '.join(task.observation_keys)})" if task.observation_keys else ""
    versions = it.evaluation["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "gymnasium", "mujoco"))
    seconds = sum(stage["seconds"] for stage in it.stages.values())
    trained = {stage["git_commit"] for stage in it.stages.values()} - {None}
    rows = [
        ["task", f"`{task.name}` in `{task.env_id}`, episodes of {task.horizon} steps{task.note and '; ' + task.note}"],
        ["sees, does", f"{behavior.state_mean.shape[-1]} numbers{parts}; {behavior.low.shape[-1]} actions, {box}"],
        [
            "data",
            f"`{it.dataset_id}`, hash `{it.data['content_hash']}`: {it.data['transitions']:,} transitions,"
            f" {it.data['episodes']:,} episodes (`aepo data get {task.name} --profile {PROFILE}`)",
        ],
        ["score", f"returns {it.data['reference_scores'][0]:g} and {it.data['reference_scores'][1]:g}; {task.scores}"],
        [
            "policy",
            f"{own['depth']} layers of {own['width']}, {own['steps']:,} steps of {own['batch']} recorded pairs,"
            f" {1 - own['uniform_share']:.0%} of them drawn by exp({own['beta']:g} A)",
        ],
        [
            "critic",
            f"{critic['depth']} layers of {critic['width']}, {critic['steps']:,} steps; discount {critic['discount']:g},"
            f" expectile {critic['expectile']:g}, hindsight {critic['hindsight']:g}",
        ],
        [
            "acting",
            f"{it.evaluation['solver_steps']} solver steps from {it.evaluation['noise_scale']:g} times the noise; where the"
            f" twin critics correlate at {CORRELATED}, the shift with beta {it.evaluation['trust']:g}",
        ],
        [
            "made with",
            f"commits `{'`, `'.join(sorted(trained))}` (training), `{it.evaluation['git_commit']}` (evaluation);"
            f" {packages}; {it.evaluation['device'].upper()}, {seconds / 60:.0f} min for critic and policy of all seeds",
        ],
    ]
    return tables.markdown_table(["", ""], rows)


def failures(it: Exported) -> str:
    """How often and how this policy fails."""
    maze = it.own["success"].notna().all()
    wrong = it.own["success"] == 0 if maze else it.own["length"] < it.task.horizon
    count = f"{wrong.sum()} of {len(wrong)}"
    shown = f"**{count}**" if wrong.any() else count
    what = "do not reach the goal" if maze else "end early, in a fall"
    returns = it.own["return"]
    return (
        f"Episodes of this policy that {what}: {shown}; its returns go from {returns.min():.0f} to {returns.max():.0f}."
    )


def limits(it: Exported) -> list[str]:
    """What the policy was not tested on and where it fails."""
    means = it.rows[it.rows["method"] != DATASET].groupby("method")["score"].mean()
    better = means[means > means[it.method]].sort_values(ascending=False)
    ahead = ", ".join(f"`{name}` {score:.1f}" for name, score in better.items())
    agreed = f"The twin critics of this seed correlate at {it.agreement:.2f}"
    followed = (
        f"{agreed}, above {CORRELATED}: the policy follows them, and what both get wrong it cannot see."
        if it.actor.guide is not None
        else f"{agreed}, below {CORRELATED}: the shift is off, and the policy is weighted cloning (`bc-weighted`)."
    )
    looked_at = it.task.name in tables.claims()["starred"]
    spread = ", ".join(f"{mean:.0f}" for mean in it.by_seed)
    return [
        failures(it),
        f"Seeds differ: mean returns {spread}. This is seed {it.seed} because it is the first, not the best.",
        followed,
        f"Mean scores of other methods here that are higher: {ahead}."
        if ahead
        else "No other method that ran here has a higher mean score.",
        f"Scores of this task were {'' if looked_at else 'not '}looked at while settings were chosen.",
        "It starts from no noise: a state has one action. Nothing warns of a state unlike the recorded ones.",
        f"Tested in `{it.task.env_id}` alone, from its own starts, on the CPU with the versions above. Not tested: other"
        " bodies, mazes or goals, noise in what it sees, a real machine, a GPU.",
    ]


def card(it: Exported) -> str:
    """The text of a policy's card."""
    recorded = int((it.rows["method"] == DATASET).sum())
    intervals = f"that of the data {recorded} recorded episodes, that of one seed its {len(it.own)} episodes"
    return CARD.format(
        task=it.task.name,
        method=it.method,
        seed=it.seed,
        source=METHODS[it.method].source,
        facts=facts(it),
        scores=tables.markdown_table(["", "return [95%]", "score [95%]", "reached", "episodes"], it.scores()),
        intervals=intervals,
        profile=PROFILE,
        limits="\n".join(f"- {line}" for line in limits(it)),
    )


def index(found: list[Exported]) -> str:
    """The table of all policies: scores of the data, of the method's seeds and of this one; whether it follows Q."""
    rows = []
    for it in found:
        name, follows = it.task.name, f"{'yes' if it.actor.guide is not None else 'no'}, {it.agreement:.2f}"
        rows.append([f"[`{name}`](../policies/{name}/README.md)", f"`{it.task.env_id}`"])
        rows[-1] += [scores[2] for scores in it.scores()] + [follows]
    head = ["policy", "environment", "recorded", "method, all seeds", "this seed", "follows the critics"]
    return tables.markdown_table(head, rows)


def write(policies: Path = POLICIES, document: Path = DOCUMENT, results: Path = ROOT / "runs" / "results.csv") -> None:
    """Write the card of every policy and the table of them."""
    main = tables.main_rows(results, PROFILE)
    found = [Exported(path.parent, main) for path in sorted(policies.glob("*/manifest.json"))]
    for it in found:
        (policies / it.task.name / "README.md").write_text(card(it))
    above, mark, _ = document.read_text().partition(MARK)
    if not mark:
        raise files.StudyError(f"{document} has no line {MARK}: the table goes below it")
    document.write_text(f"{above}{MARK}\n\n{index(found)}\n")


if __name__ == "__main__":
    try:
        write()
    except files.StudyError as error:
        raise SystemExit(f"cards: {error}") from None
