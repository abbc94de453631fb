"""scripts/gather.py takes whole tasks of another folder into the study's table, and recorded behavior thinned."""

import importlib.util
from pathlib import Path

import pandas as pd

from aepo.study import results

_spec = importlib.util.spec_from_file_location("gather", Path(__file__).parents[1] / "scripts" / "gather.py")
gather = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gather)


def rows(task, method, count, score, variant="", profile="study"):
    one = dict.fromkeys(results.COLUMNS, 0) | {"profile": profile, "task": task, "method": method, "variant": variant}
    return pd.DataFrame([one | {"episode": episode, "score": score} for episode in range(count)])


def test_whole_tasks_replace_their_rows_and_the_rest_stays():
    before = pd.concat([rows("a", "bc", 3, 1.0), rows("a", "iql", 3, 1.0), rows("b", "bc", 3, 1.0)])
    source = pd.concat(
        [
            rows("a", "bc", 2, 2.0),
            rows("a", "dataset", 250, 2.0),
            rows("a", "bc", 2, 2.0, profile="quick"),
            rows("a", "bc", 2, 2.0, variant="of a commit long ago"),
            rows("b", "iql", 2, 2.0),
            rows("b", "bc", 2, 2.0, profile="quick"),
        ]
    )
    after = gather.gathered(source, before, "study", ["bc"])
    counts = after.groupby(["task", "method", "score"]).size().to_dict()
    assert counts == {("a", "bc", 2.0): 2, ("a", "dataset", 2.0): 100, ("a", "iql", 1.0): 3, ("b", "bc", 1.0): 3}
    recorded = after[after["method"] == "dataset"]["episode"]
    assert recorded.is_monotonic_increasing
    assert (recorded.iloc[0], recorded.iloc[-1]) == (0, 249)
    assert set(after["variant"]) == {""}
    assert gather.gathered(source, after, "study", ["bc"]).equals(after)
    assert "b" not in set(gather.gathered(source, after[:0], "study", ["bc", "iql"])["task"]), (
        "bc played at quick alone"
    )
