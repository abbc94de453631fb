"""Minari's own datasets, downloaded into Minari's folder."""

from __future__ import annotations

import minari

from aepo import stored
from aepo.tasks import Task


def fetch(task: Task, dataset_id: str, progress: bool = True) -> str:
    """Download a dataset in one piece; returns its id."""
    with stored.claim(dataset_id) as staging:
        if staging is not None:
            minari.download_dataset(dataset_id)
    return dataset_id


def instead(task: Task) -> str:
    """Which local task makes such data, as the end of a sentence; empty where none does."""
    return ""
