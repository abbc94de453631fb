"""The study as one rule: a job is a notebook of a task, run by papermill; executed notebooks are kept also when they fail.

`--config` takes task (names or YAML files, separated by commas) or suite, methods, seeds, profile, device, runs_dir;
partial=1 goes on without the methods whose networks are not there. What a notebook needs stands in
aepo/study/notebooks.yaml.
"""

import json
import shlex
import sys
from pathlib import Path

from aepo import methods, settings
from aepo.data import tasks
from aepo.study import notebooks, runs

ROOT = Path(config.get("root") or workflow.basedir)
PROFILE = config.get("profile", "quick")
TASKS = {task.name: task for task in tasks.choose(str(config.get("task") or ""), str(config.get("suite") or ""))}
METHODS = [m for m in str(config.get("methods", "")).split(",") if m] or list(methods.CORE)
SEEDS = range(int(config.get("seeds") or settings.get(PROFILE).seeds))
DEVICE = config.get("device", "auto")
RUNS = ROOT / config.get("runs_dir", "runs")
GPU = int(DEVICE == "cuda" or (DEVICE == "auto" and runs.choose_device("auto") == "cuda"))
THEORY = "theory"  # the folder of the notebooks that need no task

if workflow.is_main_process:
    for name in (*TASKS, THEORY):
        notebooks.forget_incomplete(RUNS / PROFILE / name)

METHODS_OF = {
    name: notebooks.reached(RUNS / PROFILE / name, METHODS) if config.get("partial") else METHODS for name in TASKS
}


def quoted(text):
    """A word of a shell's command, without what Snakemake would fill in."""
    return shlex.quote(str(text)).replace("{", "{{").replace("}", "}}")


def marks(task, names):
    """Paths of the marks of notebooks, as they are run for the task's methods."""
    names = notebooks.of_methods(names, METHODS_OF.get(task, METHODS))
    return [str(notebooks.mark(RUNS / PROFILE / task, name)) for name in names]


def source(wildcards):
    """The notebook of the checkout."""
    return str(ROOT / "notebooks" / (wildcards.notebook.partition("-")[0] + ".ipynb"))


def needed(wildcards):
    """Marks of the notebooks that must have ended before."""
    return marks(wildcards.task, notebooks.entry(wildcards.notebook).needs)


def given(wildcards):
    """A notebook's parameters as JSON."""
    task = TASKS.get(wildcards.task) or next(iter(TASKS.values()))
    chosen = METHODS_OF[task.name]
    return json.dumps(notebooks.parameters(wildcards.notebook, task.argument, SEEDS, chosen, PROFILE))


rule study:
    default_target: True
    input:
        [marks(task, notebooks.STUDY) for task in TASKS],


rule theory:
    input:
        marks(THEORY, notebooks.THEORY),


rule performance:
    input:
        marks(THEORY, notebooks.PERFORMANCE),


rule ablations:
    input:
        [marks(task, ["11_ablations"]) for task in TASKS],


rule notebook:
    input:
        source,
        needed,
    output:
        str(notebooks.mark(RUNS / PROFILE / "{task}", "{notebook}")),
    log:
        notebook=str(RUNS / PROFILE / "{task}" / "{notebook}.ipynb"),
    params:
        given=given,
        settings=lambda wildcards: notebooks.settings_hash(TASKS.get(wildcards.task), PROFILE),
    wildcard_constraints:
        task="|".join([*TASKS, THEORY]),
        notebook="[^/]+",
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: notebooks.entry(wildcards.notebook).memory * attempt,
        gpu=lambda wildcards: GPU * notebooks.entry(wildcards.notebook).gpu,
        attempt=lambda wildcards, attempt: attempt,
    shell:
        f"cd {quoted(ROOT)} && OMP_NUM_THREADS={{threads}} {quoted(sys.executable)} scripts/run_papermill.py"
        f" {{input[0]:q}} {{log.notebook:q}} {{output:q}} {{params.given:q}} {quoted(DEVICE)} {quoted(RUNS)} {{resources.attempt}}"
