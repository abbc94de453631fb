"""A task's trainings and evaluations in one process, without notebooks and figures: for many tasks on few cores."""

from aepo.data import datasets
from aepo.methods import METHODS
from aepo.study import results, runs, stages
from aepo.study.runs import Run


def run_task(run: Run) -> None:
    """What notebooks 03 to 08 compute for the run's task and methods: networks, returns.csv, the rows of results.csv."""
    datasets.prepare(run.task, run.profile_name, run.profile.data)
    data = datasets.load(run.task, run.profile_name)
    runs.record_data(run.folder, data)
    behavior = stages.train_behavior(run, data)
    for method in run.methods:
        train(run, data, behavior, method)
    results.write_returns(run, data)
    results.merge_results(run)


def train(run: Run, data: datasets.Dataset, behavior: stages.Behavior, method: str) -> None:
    """Train what a method needs beyond the behavior model, or find it done."""
    entry = METHODS[method]
    critic = stages.train_critic(run, data, behavior=behavior)
    if entry.energy:
        stages.train_energy(run, data, behavior, critic, method)
    if entry.policy:
        stages.train_policy(run, data, behavior, critic, method)
