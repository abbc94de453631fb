"""runs/budgets.csv: the evidence for discounts and budgets that docs and README speak of."""

from pathlib import Path

import pandas as pd
import pytest

from aepo import settings
from aepo.learners import discount

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def budgets():
    return pd.read_csv(ROOT / "runs" / "budgets.csv")


def test_the_discounts_are_those_of_the_rule(budgets):
    """The least with the agreement asked for, or the greatest there is."""
    wide = budgets[budgets["stage"] == "critic"].pivot(index="task", columns="metric", values="value")
    assert len(wide) >= 10
    assert set(wide["discount"]) <= {*discount.DISCOUNTS}
    agreed = (wide["agreement"] >= discount.AGREEMENT) | (wide["discount"] == discount.DISCOUNTS[-1])
    assert agreed.all(), wide[~agreed]


def test_the_steps_are_those_of_the_profile(budgets):
    own = budgets[budgets["profile"] == "study"].groupby("stage")["steps"].unique()
    study = settings.STUDY
    assert own["behavior"].tolist() == [study.behavior.steps]
    assert own["critic"].tolist() == [study.critic.steps]
    assert own["policy-td3bc"].tolist() == [study.policy.critic_steps]
    assert own["energy-qgpo-b3"].tolist() == [study.energy.steps]


def test_the_contrastive_energy_is_better_than_chance(budgets):
    """Cross-entropy below log 16 = 2.7726; by how little is what docs/methods.md says."""
    loss = budgets[(budgets["stage"] == "energy-qgpo-b3") & (budgets["metric"] == "loss")]["value"]
    assert len(loss) >= 5
    assert (loss < 2.7726).all()
