"""The discount by a rule that sees no score: the least one that ranks recorded episodes as their returns do."""

import numpy as np
import pandas as pd

from aepo.data.datasets import Dataset
from aepo.data.tasks import Task

DISCOUNTS = (0.98, 0.99, 0.995, 0.997, 0.999, 0.9995, 0.9999)
AGREEMENT = 0.97
PAIRS = 20_000


def agreements(data: Dataset, task: Task) -> pd.Series:
    """For each of DISCOUNTS: the share of pairs of episodes, weighed by what they differ, that both returns rank alike.

    Of one walk cut into segments (`task.continuing`), whole windows of the horizon are the episodes.
    """
    reward = data.reward.double().cpu().numpy()
    if task.continuing:
        reward = reward[: len(reward) // task.horizon * task.horizon or None]
        episode = np.arange(len(reward)) // task.horizon
    else:
        episode = data.episode.cpu().numpy()
    first = np.r_[0, np.bincount(episode).cumsum()[:-1]]
    step = np.arange(len(reward)) - first[episode]
    full = np.bincount(episode, reward)
    one, other = np.random.default_rng(0).integers(len(full), size=(2, PAIRS))
    weight, found = np.abs(full[one] - full[other]), {}
    for discount in DISCOUNTS:
        discounted = np.bincount(episode, reward * discount**step)
        alike = np.sign(discounted[one] - discounted[other]) == np.sign(full[one] - full[other])
        found[discount] = float((weight * alike).sum() / weight.sum()) if weight.sum() > 0 else 1.0
    return pd.Series(found, name="agreement").rename_axis("discount")


def chosen_discount(data: Dataset, task: Task) -> float:
    """The least of DISCOUNTS with an agreement of AGREEMENT; the greatest where none has it."""
    found = agreements(data, task)
    enough = found[found >= AGREEMENT]
    return float(enough.index[0] if len(enough) else DISCOUNTS[-1])
