"""The study, suites x tasks x methods: rules are notebooks, run by papermill; executed ones are kept also when they fail.

`--config` takes task (names or YAML files, separated by commas) or suite, methods, seeds, profile, device, runs_dir;
partial=1 goes on without the methods whose energy is not there.
"""

import json
import sys
from pathlib import Path

from aepo import methods, files, settings
from aepo.study import runs
from aepo.data import tasks

ROOT = Path(config.get("root") or workflow.basedir)
PROFILE = config.get("profile", "quick")
TASKS = {task.name: task for task in tasks.choose(str(config.get("task") or ""), str(config.get("suite") or ""))}
METHODS = [m for m in str(config.get("methods", "")).split(",") if m] or list(methods.CORE)
SEEDS = list(range(int(config.get("seeds") or settings.get(PROFILE).seeds)))
DEVICE = config.get("device", "auto")
RUNS = Path(config.get("runs_dir", "runs"))
RUNS = RUNS if RUNS.is_absolute() else ROOT / RUNS
FIGURES = RUNS.parent / "figures" / PROFILE
THEORY = RUNS / PROFILE / "theory"
SETTINGS = {name: settings.for_task(PROFILE, task.settings) for name, task in TASKS.items()}
GPU = int(DEVICE == "cuda" or (DEVICE == "auto" and runs.choose_device("auto") == "cuda"))
SMALL, LARGE = 1500, 3000  # MB of a notebook that reads tables, and of one that holds a dataset and its training


def shared(path):
    """A path that every machine sees: it is not moved to and from a storage where a cluster's profile names one."""
    return local(str(path))


def notebook(name):
    """Path of a notebook of the checkout."""
    return shared(ROOT / "notebooks" / f"{name}.ipynb")


def run_file(name, task="{task}"):
    """Path of a file in a task's run folder."""
    return shared(RUNS / PROFILE / task / name)


def mark(notebook, task="{task}"):
    """The file that says a notebook ran to its end."""
    return run_file(f".done/{notebook}", task)


def reached(task):
    """The task's methods: all, or in a partial study those that lack nothing."""
    if not config.get("partial"):
        return METHODS
    needed = {m: methods.trained_in(m) for m in METHODS}
    return [m for m, notebook in needed.items() if notebook is None or Path(mark(notebook, task)).exists()]


METHODS_OF = {task: reached(task) for task in TASKS}
if workflow.is_main_process and not config.get("read_only"):
    # A notebook runs again when one of the files it leaves is gone; its stages skip what is already there.
    for name, task in TASKS.items():
        made = runs.products(Path(run_file("", name)), FIGURES / name, METHODS_OF[name], SETTINGS[name], task.env_id is not None)
        runs.forget_incomplete(Path(run_file("", name)), made)
    runs.forget_incomplete(THEORY, runs.theory_products(THEORY, FIGURES / "theory"))


def papermill(notebook, chosen=METHODS, task="{params.task}"):
    """Command line that executes a notebook; `task` and the strings in `chosen` may hold Snakemake's {placeholders}."""
    values = {"task": "<task>", "seeds": SEEDS, "methods": "<methods>", "profile": PROFILE, "device": DEVICE, "runs_dir": str(RUNS)}
    parameters = json.dumps(values).replace("{", "{{").replace("}", "}}").replace("<task>", task)
    parameters = parameters.replace('"<methods>"', chosen if isinstance(chosen, str) else json.dumps(chosen))
    return (
        f"cd '{ROOT}' && OMP_NUM_THREADS={{threads}} {sys.executable} scripts/run_papermill.py --no-progress-bar --log-level WARNING "
        f"notebooks/{notebook}.ipynb {{log.notebook}} -y '{parameters}'"
    )


def of_task(wildcards):
    """What a task is called in a notebook's parameters: its name, or the path of its YAML file."""
    return TASKS[wildcards.task].argument


def methods_of(wildcards):
    """A task's methods as a notebook's parameter."""
    return json.dumps(METHODS_OF[wildcards.task])


def guided_of(wildcards):
    """A task's energies on the shared critic as a notebook's parameter."""
    chosen = methods.energies(METHODS_OF[wildcards.task])
    return json.dumps([m for m in chosen if methods.METHODS[m].critic == "expectile"])


def energies(wildcards):
    """End marks of a task's energies."""
    return [mark(f"06_energy-{m}", wildcards.task) for m in methods.energies(METHODS_OF[wildcards.task])]


def networks(wildcards):
    """End marks of all that a task's methods act with."""
    needed = {methods.trained_in(m) for m in METHODS_OF[wildcards.task]} - {None}
    return [mark(notebook, wildcards.task) for notebook in sorted(needed)]


def settings_of(*stages):
    """Settings of stages as a rule parameter: the rule runs again when they change."""
    return lambda wildcards: "".join(
        json.dumps(settings.as_dict(getattr(SETTINGS[wildcards.task], stage)), sort_keys=True) for stage in stages
    )


def memory(size):
    """MB of a notebook; twice as much when it is tried again."""
    return lambda wildcards, attempt: size * attempt


wildcard_constraints:
    task="|".join(TASKS),
    method="|".join([*methods.energies(METHODS), *methods.policies(METHODS)]) or "none",


rule study:
    default_target: True
    input:
        [mark("08_results", task) for task in TASKS],
        [mark("09_guidance_on_real_tasks", task) for task in TASKS if methods.energies(METHODS_OF[task])],


rule theory:
    input:
        shared(THEORY / ".done/01_closed_form_guidance"),
        shared(THEORY / ".done/02_exact_toys"),


rule performance:
    input:
        notebook("10_performance"),
    output:
        touch(shared(THEORY / ".done/10_performance")),
    log:
        notebook=shared(THEORY / "10_performance.ipynb"),
    threads: 1
    resources:
        mem_mb=memory(LARGE),
        gpu=GPU,
    shell:
        papermill("10_performance", task=next(iter(TASKS)))


rule closed_form:
    input:
        notebook("01_closed_form_guidance"),
    output:
        touch(shared(THEORY / ".done/01_closed_form_guidance")),
    log:
        notebook=shared(THEORY / "01_closed_form_guidance.ipynb"),
    threads: 1
    resources:
        mem_mb=memory(SMALL),
    shell:
        papermill("01_closed_form_guidance", task=next(iter(TASKS)))


rule exact_toys:
    input:
        notebook("02_exact_toys"),
    output:
        touch(shared(THEORY / ".done/02_exact_toys")),
    log:
        notebook=shared(THEORY / "02_exact_toys.ipynb"),
    params:
        seeds=SEEDS,
    threads: 1
    resources:
        mem_mb=memory(LARGE),
    shell:
        papermill("02_exact_toys", task=next(iter(TASKS)))


rule dataset:
    input:
        notebook("03_dataset"),
    output:
        touch(mark("03_dataset")),
    log:
        notebook=run_file("03_dataset.ipynb"),
    params:
        settings=settings_of("data"),
        dataset=lambda wildcards: TASKS[wildcards.task].dataset_id(PROFILE),
        task=of_task,
    threads: 1
    resources:
        mem_mb=memory(LARGE),
    shell:
        papermill("03_dataset")


rule behavior:
    input:
        notebook("04_behavior"),
        mark("03_dataset"),
    output:
        touch(mark("04_behavior")),
    log:
        notebook=run_file("04_behavior.ipynb"),
    params:
        settings=settings_of("behavior"),
        seeds=SEEDS,
        task=of_task,
    priority: 1
    threads: 1
    resources:
        mem_mb=memory(LARGE),
        gpu=GPU,
    shell:
        papermill("04_behavior")


rule critic:
    input:
        notebook("05_critic"),
        mark("03_dataset"),
    output:
        touch(mark("05_critic")),
    log:
        notebook=run_file("05_critic.ipynb"),
    params:
        settings=settings_of("critic"),
        seeds=SEEDS,
        task=of_task,
    priority: 2
    threads: 1
    resources:
        mem_mb=memory(LARGE),
        gpu=GPU,
    shell:
        papermill("05_critic")


rule energy:
    input:
        notebook("06_energy"),
        mark("04_behavior"),
        mark("05_critic"),
    output:
        touch(mark("06_energy-{method}")),
    log:
        notebook=run_file("06_energy-{method}.ipynb"),
    params:
        settings=settings_of("energy", "evaluation"),
        seeds=SEEDS,
        task=of_task,
    priority: 3
    threads: 1
    resources:
        mem_mb=memory(LARGE),
        gpu=GPU,
    shell:
        papermill("06_energy", ["{wildcards.method}"])


rule policy:
    input:
        notebook("06_policy"),
        mark("04_behavior"),
        mark("05_critic"),
    output:
        touch(mark("06_policy-{method}")),
    log:
        notebook=run_file("06_policy-{method}.ipynb"),
    params:
        settings=settings_of("policy", "energy", "critic", "evaluation"),
        seeds=SEEDS,
        task=of_task,
    priority: 3
    threads: 1
    resources:
        mem_mb=memory(LARGE),
        gpu=GPU,
    shell:
        papermill("06_policy", ["{wildcards.method}"])


rule evaluation:
    input:
        notebook("07_evaluation"),
        mark("04_behavior"),
        mark("05_critic"),
        networks,
    output:
        touch(mark("07_evaluation")),
    log:
        notebook=run_file("07_evaluation.ipynb"),
    params:
        settings=settings_of("evaluation"),
        seeds=SEEDS,
        task=of_task,
        methods=methods_of,
    priority: 4
    threads: 1
    resources:
        mem_mb=memory(LARGE),
        gpu=GPU,
    shell:
        papermill("07_evaluation", "{params.methods}")


rule results:
    input:
        notebook("08_results"),
        mark("07_evaluation"),
    output:
        touch(mark("08_results")),
    log:
        notebook=run_file("08_results.ipynb"),
    params:
        seeds=SEEDS,
        task=of_task,
        methods=methods_of,
    priority: 5
    threads: 1
    resources:
        mem_mb=memory(SMALL),
    shell:
        papermill("08_results", "{params.methods}")


rule guidance:
    input:
        notebook("09_guidance_on_real_tasks"),
        energies,
    output:
        touch(mark("09_guidance_on_real_tasks")),
    log:
        notebook=run_file("09_guidance_on_real_tasks.ipynb"),
    params:
        seeds=SEEDS,
        task=of_task,
        guided=guided_of,
    threads: 1
    resources:
        mem_mb=memory(LARGE),
        gpu=GPU,
    shell:
        papermill("09_guidance_on_real_tasks", "{params.guided}")


# `aepo report`: what Snakemake's report shows of a task that has results.
rule gallery:
    input:
        [run_file("report", task) for task in TASKS],


rule figures_of_task:
    input:
        mark("08_results"),
    output:
        report(directory(run_file("report")), patterns=["{name}.png", "{name}.csv"], category="{task}", labels={"file": "{name}"}),
    params:
        figures=lambda wildcards: FIGURES / wildcards.task,
        returns=run_file("returns.csv"),
    shell:
        "mkdir -p {output} && cp {params.returns} {params.figures}/*.png {output}"


rule ablate:
    input:
        [mark("11_ablations", task) for task in TASKS],


rule ablations:
    input:
        notebook("11_ablations"),
        mark("04_behavior"),
        mark("05_critic"),
        mark("07_evaluation"),
    output:
        touch(mark("11_ablations")),
    log:
        notebook=run_file("11_ablations.ipynb"),
    params:
        settings=settings_of("energy", "critic", "evaluation"),
        seeds=SEEDS,
        task=of_task,
        methods=methods_of,
    threads: 1
    resources:
        mem_mb=memory(LARGE),
        gpu=GPU,
    shell:
        papermill("11_ablations", "{params.methods}")
