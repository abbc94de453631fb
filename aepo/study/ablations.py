"""Variants of a run: one setting changed, everything that it does not touch shared with the run; a table."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from aepo import files, settings
from aepo.data import datasets
from aepo.files import StudyError
from aepo.learners.energies import SUPPORTED
from aepo.learners.policies import RENEWED
from aepo.methods import METHODS
from aepo.study import campaign, results, runs, stages
from aepo.study.runs import Run

TOUCHES = {  # by the stage whose settings change: which stages are made again, by how their names begin
    "critic": ("critic", "energy", "policy", "support-policy"),
    "energy": ("energy", "support"),
    "policy": ("policy", "support-policy"),
    "evaluation": (),
}
TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)
GUIDED = (
    "qgpo", "qgpo-softmax", "aepo-direct", "aepo-direct-softmax", "mean-q", "aepo", "aepo-cubature", "aepo-support",
    "aepo-support-softmax",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """`changes` of the settings by stage, under `name`, for some methods; `question`: what it answers.

    `present`: only for those of the methods that the run itself has. Of the search of one number a method
    (`study.search`): which `number`, and how many `times` its default.
    """

    name: str
    question: str
    methods: tuple[str, ...]
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    present: bool = False
    number: str = ""
    times: float | None = None


def _guidance(method: str, beta: float, scale: float) -> dict[str, dict[str, dict[str, float]]]:
    return {"evaluation": {"beta": {method: beta}, "guidance_scale": {method: scale}}}


def _factors(value: float) -> dict[str, dict[str, dict[str, float]]]:
    return {"evaluation": {"scale_factor": dict.fromkeys(GUIDED, value)}}


def _own(name: str, method: str, stage: str, times: float, **values: Any) -> Variant:
    return Variant(name, "own", (method,), {stage: values}, True, next(iter(values)), times)


QUESTIONS = {
    "factor": "more or less guidance than the rule chooses, for every target",
    "own": "the number that stands for it in methods without a guidance scale",
    "grid": "how much guidance: beta and the guidance scale",
    "expectile": "the expectile of the critic's V: the mean of what was recorded, or nearer to its best",
    "floor": "a critic without the floor of recorded returns",
    "solver": "how many solver steps",
    "support": "how many support actions",
    "noise": "how much noise to start from; from none: one action a state",
}
VARIANTS = [
    *(Variant(f"{times:g} x", "factor", GUIDED, _factors(times), True, "scale", times) for times in TIMES),
    *(_own(f"{16 * x:g} candidates", "best-of-n", "evaluation", x, candidates=int(16 * x)) for x in TIMES),
    *(
        _own(f"{method} beta {3 * x:g}", method, "evaluation", x, beta={method: 3 * x})
        for method in ("iql", "qipo")
        for x in TIMES
    ),
    *(_own(f"alpha {2.5 * x:g}", "td3bc", "policy", x, alpha=2.5 * x) for x in TIMES),
    *(
        Variant(f"beta {beta:g}, scale {scale:g}", "grid", ("aepo-direct",), _guidance("aepo-direct", beta, scale))
        for beta in (1.0, 3.0, 10.0)
        for scale in (0.5, 1.0, 2.0)
    ),
    *(
        Variant(
            f"expectile {value:g}", "expectile", ("best-of-n", "aepo-direct", "iql"), {"critic": {"expectile": value}}
        )
        for value in (0.5, 0.8)
    ),
    Variant("no floor", "floor", ("best-of-n", "aepo-direct"), {"critic": {"return_floor": False}}),
    *(
        Variant(f"{steps} solver steps", "solver", ("bc", "aepo-direct"), {"evaluation": {"solver_steps": steps}})
        for steps in (5, 20)
    ),
    *(
        Variant(f"noise {noise:g}", "noise", methods, {"evaluation": {"noise_scale": dict.fromkeys(methods, noise)}})
        for noise, methods in (
            (0.0, ("bc", "aepo-direct")),
            (0.25, ("bc", "best-of-n")),
            (0.5, ("bc", "best-of-n", "aepo-direct")),
            (1.0, ("aepo-direct",)),
        )
    ),
    Variant("4 support actions", "support", ("aepo-support",), {"energy": {"support": 4}}),
    Variant("64 support actions", "support", ("aepo-support",), {"energy": {"support": 64, "support_states": 4_096}}),
]


def chosen(profile: str, methods: Collection[str] = tuple(METHODS)) -> list[Variant]:
    """The variants that runs of a profile have with these methods: all; at smoke one a question."""
    some = [variant for variant in VARIANTS if not variant.present or {*variant.methods} & {*methods}]
    if not settings.is_smoke(profile):
        return some
    return list({variant.question: variant for variant in reversed(some)}.values())[::-1]


def slug(variant: str) -> str:
    """A variant's name as that of its folder."""
    return variant.replace(" ", "-").replace(",", "")


def folder_of(run: Run, variant: Variant) -> Run:
    """The run of a variant: a folder of its own below the run's, its settings changed."""
    changed = {stage: dict(values) for stage, values in run.task.settings.items()}
    for stage, values in variant.changes.items():
        own = changed.setdefault(stage, {})
        for key, value in values.items():
            own[key] = {**own.get(key, {}), **value} if isinstance(value, Mapping) else value
    folder = run.folder / "ablations" / slug(variant.name)
    methods = tuple(m for m in variant.methods if m in run.methods or not variant.present)
    return replace(run, folder=folder, task=replace(run.task, settings=changed), methods=methods)


def _used(run: Run) -> list[str]:
    """The stages that the run's methods act with, and what these were made from."""
    beta = run.profile.evaluation.beta
    used = {stage for method in run.methods for stage in runs.stages_of(method, beta.get(method, 0.0)).values()}
    used |= {"behavior", "critic"}
    for method in run.methods:
        if METHODS[method].energy in SUPPORTED or METHODS[method].policy in RENEWED:
            used.add("support")
        if METHODS[method].policy in RENEWED:
            final = runs.policy_stage(method, beta[method])
            for index in range(1, run.profile.policy.rounds):
                used |= {f"{final}-round{index}", f"support-{final}-round{index + 1}"}
    return sorted(used)


def _share(run: Run, own: Run, *names: str, anew: bool = False) -> None:
    """Copy a run's files to a variant's folder that lacks the last of them, or `anew`; what does not fit is made there."""
    if (run.folder / names[-1]).exists() and (anew or not (own.folder / names[-1]).exists()):
        for source in (run.folder / name for name in names if (run.folder / name).exists()):
            with files.atomic_path(own.folder / source.relative_to(run.folder)) as temporary:
                shutil.copyfile(source, temporary)


def evaluate(run: Run, variant: Variant) -> pd.DataFrame:
    """Train what the variant changes, evaluate its methods; their episodes also in the run's returns.csv from then on."""
    if not run.task.env_id:
        raise StudyError(f"task {run.task.name} is train-only: its variants have no environment to be evaluated in")
    own, data = folder_of(run, variant), datasets.load(run.task, run.profile_name)
    own.folder.mkdir(parents=True, exist_ok=True)
    runs.record_data(own.folder, data)
    again = tuple(name for stage in variant.changes for name in TOUCHES[stage])
    shared = [stage for stage in _used(own) if not stage.startswith(again)]
    for stage in shared:  # support has no log; the artefact comes last: where it is, the others are
        now, kept = (files.read_json(each.folder / f"{stage}.json").get("settings_hash") for each in (run, own))
        _share(run, own, f"metrics/{stage}.parquet", f"{stage}.json", f"{stage}.safetensors", anew=now != kept)
    for method in own.methods:
        _share(run, own, f"evaluation/scale-{method}-b{own.profile.evaluation.beta.get(method, 0):g}.json")
        _share(run, own, f"evaluation/{method}.safetensors")
    behavior, frames = stages.train_behavior(own, data), []
    for method in own.methods:
        campaign.train(own, data, behavior, method)
        rollouts, (beta, scale) = results.evaluate(own, method), results.guidance_of(own, method)
        scales = scale if isinstance(scale, list) else [scale] * len(run.seeds)
        frames += [
            results.rows(rollouts, i, method, variant.name, beta, scales[i], seed) for i, seed in enumerate(run.seeds)
        ]
    frame = results.scored(pd.concat(frames, ignore_index=True), run, data)
    table = run.folder / "evaluation" / f"ablation-{own.folder.name}.csv"
    made_from = {stage: files.read_json(run.folder / f"{stage}.json").get("settings_hash") for stage in shared}
    files.write_json(table.with_suffix(".json"), {"seeds": list(run.seeds), "networks": made_from})
    with files.atomic_path(table) as temporary:
        frame.to_csv(temporary, index=False)
    return frame
