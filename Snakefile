"""The study of one task: rules are notebooks, run by papermill; the executed notebook is kept also when it fails."""

import json
import sys
from pathlib import Path

from aepo import methods, runs, settings, tasks

ROOT = Path(workflow.basedir)
PROFILE = config.get("profile", "quick")
TASK = config.get("task", "maze2d-umaze")
METHODS = [m for m in str(config.get("methods", "")).split(",") if m] or list(methods.CORE)
SEEDS = list(range(int(config.get("seeds") or settings.get(PROFILE).seeds)))
DEVICE = config.get("device", "auto")
RUNS = Path(config.get("runs_dir", "runs"))
RUNS = RUNS if RUNS.is_absolute() else ROOT / RUNS
GUIDED = [m for m in METHODS if methods.METHODS[m].energy]
NAME = tasks.get(TASK).name
RUN = RUNS / PROFILE / NAME
FIGURES = RUNS.parent / "figures" / PROFILE / NAME
THEORY = RUNS / PROFILE / "theory"
SETTINGS = settings.for_task(PROFILE, tasks.get(TASK).settings)


def mark(notebook):
    """The file that says a notebook ran to its end."""
    return RUN / ".done" / notebook


# A notebook runs again when one of the files it leaves is gone; its stages skip what is already there.
runs.forget_incomplete(RUN, runs.products(RUN, FIGURES, METHODS, SETTINGS, tasks.get(TASK).env_id is not None))
runs.forget_incomplete(THEORY, runs.theory_products(THEORY, FIGURES.parent / "theory"))


def papermill(notebook, methods=METHODS):
    """Command line that executes a notebook for this run."""
    values = {"task": TASK, "seeds": SEEDS, "methods": methods, "profile": PROFILE, "device": DEVICE, "runs_dir": str(RUNS)}
    parameters = json.dumps(values).replace("{", "{{").replace("}", "}}")
    return (
        f"cd '{ROOT}' && OMP_NUM_THREADS={{threads}} {sys.executable} -m papermill --no-progress-bar --log-level WARNING "
        f"notebooks/{notebook}.ipynb {{log.notebook}} -y '{parameters}'"
    )


def changed(stage_settings):
    """Settings as a rule parameter: the rule runs again when they change."""
    return json.dumps(settings.as_dict(stage_settings), sort_keys=True)


rule study:
    default_target: True
    input:
        mark("08_results"),
        mark("09_guidance_on_real_tasks") if GUIDED else [],


rule theory:
    input:
        THEORY / ".done/01_closed_form_guidance",
        THEORY / ".done/02_exact_toys",


rule performance:
    input:
        ROOT / "notebooks/10_performance.ipynb",
    output:
        touch(THEORY / ".done/10_performance"),
    log:
        notebook=THEORY / "10_performance.ipynb",
    threads: 1
    shell:
        papermill("10_performance")


rule closed_form:
    input:
        ROOT / "notebooks/01_closed_form_guidance.ipynb",
    output:
        touch(THEORY / ".done/01_closed_form_guidance"),
    log:
        notebook=THEORY / "01_closed_form_guidance.ipynb",
    threads: 1
    shell:
        papermill("01_closed_form_guidance")


rule exact_toys:
    input:
        ROOT / "notebooks/02_exact_toys.ipynb",
    output:
        touch(THEORY / ".done/02_exact_toys"),
    log:
        notebook=THEORY / "02_exact_toys.ipynb",
    params:
        seeds=SEEDS,
    threads: 1
    shell:
        papermill("02_exact_toys")


rule dataset:
    input:
        ROOT / "notebooks/03_dataset.ipynb",
    output:
        touch(mark("03_dataset")),
    log:
        notebook=RUN / "03_dataset.ipynb",
    params:
        settings=changed(SETTINGS.data),
        dataset=tasks.get(TASK).dataset_id(PROFILE),
    threads: 1
    shell:
        papermill("03_dataset")


rule behavior:
    input:
        ROOT / "notebooks/04_behavior.ipynb",
        mark("03_dataset"),
    output:
        touch(mark("04_behavior")),
    log:
        notebook=RUN / "04_behavior.ipynb",
    params:
        settings=changed(SETTINGS.behavior),
        seeds=SEEDS,
    threads: 1
    shell:
        papermill("04_behavior")


rule critic:
    input:
        ROOT / "notebooks/05_critic.ipynb",
        mark("03_dataset"),
    output:
        touch(mark("05_critic")),
    log:
        notebook=RUN / "05_critic.ipynb",
    params:
        settings=changed(SETTINGS.critic),
        seeds=SEEDS,
    priority: 1
    threads: 1
    shell:
        papermill("05_critic")


rule energy:
    input:
        ROOT / "notebooks/06_energy.ipynb",
        mark("04_behavior"),
        mark("05_critic"),
    output:
        touch(mark("06_energy-{method}")),
    log:
        notebook=RUN / "06_energy-{method}.ipynb",
    params:
        settings=changed(SETTINGS.energy) + changed(SETTINGS.evaluation),
        seeds=SEEDS,
    wildcard_constraints:
        method="|".join(GUIDED) or "none",
    threads: 1
    shell:
        papermill("06_energy", ["<method>"]).replace("<method>", "{wildcards.method}")


rule evaluation:
    input:
        ROOT / "notebooks/07_evaluation.ipynb",
        mark("04_behavior"),
        mark("05_critic"),
        [mark(f"06_energy-{method}") for method in GUIDED],
    output:
        touch(mark("07_evaluation")),
    log:
        notebook=RUN / "07_evaluation.ipynb",
    params:
        settings=changed(SETTINGS.evaluation),
        seeds=SEEDS,
        methods=METHODS,
    threads: 1
    shell:
        papermill("07_evaluation")


rule results:
    input:
        ROOT / "notebooks/08_results.ipynb",
        mark("07_evaluation"),
    output:
        touch(mark("08_results")),
    log:
        notebook=RUN / "08_results.ipynb",
    params:
        seeds=SEEDS,
        methods=METHODS,
    threads: 1
    shell:
        papermill("08_results")


rule guidance:
    input:
        ROOT / "notebooks/09_guidance_on_real_tasks.ipynb",
        [mark(f"06_energy-{method}") for method in GUIDED],
    output:
        touch(mark("09_guidance_on_real_tasks")),
    log:
        notebook=RUN / "09_guidance_on_real_tasks.ipynb",
    params:
        seeds=SEEDS,
        methods=GUIDED,
    threads: 1
    shell:
        papermill("09_guidance_on_real_tasks", GUIDED)
