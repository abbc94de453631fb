"""The benchmark: its cases, its table, what it leaves out and what it goes on after; never a time."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from aepo.learners import capture, training
from benchmarks import bench, products


def test_products_are_those_of_the_step():
    """One linear map of a batch: its product, counted by hand."""
    weight, x = torch.randn(2, 4, 5), torch.randn(2, 3, 4)
    with products.ProductRecorder() as recorder:
        torch.baddbmm(torch.zeros(2, 1, 5), x, weight)
    assert [[shape for shape, _ in pair] for pair in recorder.factors] == [[(2, 3, 4), (2, 4, 5)]]


def test_bench_csv_keeps_other_rows_of_the_same_machine(tmp_path):
    path, here = tmp_path / "bench.csv", {"device": "cpu: a", "threads": "1"}
    row = bench.Row("behavior", "cpu", "default", 1, 256, "ms", 2.0)
    bench.write([row, replace(row, metric="product_share", value=0.5)], path, here)
    bench.write([replace(row, value=3.0), replace(row, seeds=8)], path, here)
    table = pd.read_csv(path, comment="#")
    assert table[["seeds", "metric", "value"]].values.tolist() == [
        [1, "product_share", 0.5],
        [1, "ms", 3.0],
        [8, "ms", 2.0],
    ]
    assert bench.read(path, "cpu") is None
    bench.write([row], tmp_path / "own.csv", bench.machine("cpu"))
    assert bench.read(tmp_path / "own.csv", "cpu")["ms"].tolist() == [2.0]
    assert bench.read(tmp_path / "none.csv", "cpu") is None
    bench.write([row], path, {**here, "threads": "2"})
    assert len(pd.read_csv(path, comment="#")) == 1
    assert path.read_text().startswith("# device: cpu: a\n# threads: 2\n")


def options(output, **more):
    words = {"networks": ["default"], "seeds": ["1", "2"], "batches": ["8"], "states": ["1"], "load": ["0"]} | more
    own = [word for name, values in words.items() for word in (f"--{name}", *values)]
    return [*own, "--device", "cpu", "--rounds", "1", "--output", str(output)]


def test_the_benchmark_runs_and_refuses_what_it_cannot(tmp_path, capsys):
    output = tmp_path / "bench.csv"
    bench.main(options(output, load=["2000"]))
    table = pd.read_csv(output, comment="#")
    assert set(table["case"]) == {*bench.STAGES, "act-guided", "act-unguided", "load-first", "load", "all"}
    stages = table[table["case"].isin(bench.STAGES)]
    assert (stages.groupby(["case", "seeds"])["metric"].apply(set) >= {"ms", "product_share", "ratio_eager"}).all()
    assert (table["value"] > 0).all()
    for wrong, said in (({"networks": ["huge"]}, "invalid choice: 'huge'"), ({"states": ["0"]}, "above 0")):
        with pytest.raises(SystemExit):
            bench.main(options(tmp_path / "no.csv", **wrong))
        assert said in capsys.readouterr().err
    assert not (tmp_path / "no.csv").exists()


def test_cases_that_take_too_long_are_left_out_with_a_word(monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(bench, "bench_stage", lambda *case, **more: measured.append(case[:4]))
    asked = SimpleNamespace(networks=["qgpo"], seeds=[1, 8], batches=[256, 4_096], states=[], load=0, rounds=1)
    asked.stages, asked.patience = bench.STAGES, 1.0
    assert all(measure() is None for _, measure in bench.cases(asked, "cpu"))
    assert ("critic", "qgpo", 8, 256) in measured
    assert ("critic", "qgpo", 1, 4_096) in measured
    assert ("energy-qgpo", "qgpo", 1, 4_096) not in measured
    assert not any(seeds * batch > bench.LARGEST for *_, seeds, batch in measured)
    assert capsys.readouterr().out.count("left out") == len(bench.STAGES) + 1


def test_a_captured_step_and_call_stand_beside_eager_ones(monkeypatch):
    """As on a GPU: with a stand-in for its graphs."""
    monkeypatch.setattr(capture, "graph", lambda run, name: SimpleNamespace(replay=run))
    monkeypatch.setattr(capture, "on_side_stream", lambda run: run())
    made = training.Steps
    monkeypatch.setattr(bench, "Steps", lambda learner, captured=None: made(learner, captured is None))
    found = {row.metric: row.value for row in bench.bench_stage("behavior", "default", 2, 8, "cpu", 2)}
    assert {*found} == {"ms", "seed_steps_per_s", "product_share", "ratio_eager", "ratio_captured"}
    monkeypatch.setattr(bench, "MOST_ALONE", 1)
    assert "ratio_eager" not in {row.metric for row in bench.bench_stage("policy-flow", "default", 2, 8, "cpu", 2)}
    whole = bench.acting
    monkeypatch.setattr(bench, "acting", lambda *case: whole(*case) + whole(*case))
    rows = [*bench.bench_act("default", 3, "cpu", 2)]
    assert [(row.case, row.metric) for row in rows] == [
        (case, metric) for case in ("act-guided", "act-unguided") for metric in ("ms", "ratio_captured")
    ]


def test_the_benchmark_goes_on_after_a_case_that_fails_and_measures_what_is_missing(tmp_path, monkeypatch, capsys):
    output, whole = tmp_path / "bench.csv", bench.bench_stage

    def failing(stage, *case, **more):
        if stage == "critic":
            raise RuntimeError("no critic today")
        return whole(stage, *case, **more)

    monkeypatch.setattr(bench, "bench_stage", failing)
    given = [*options(output, seeds=["1"]), "--stages", "behavior", "critic", "policy-gaussian"]
    with pytest.raises(SystemExit, match="1 cases failed: critic"):
        bench.main(given)
    assert "critic default 1 8 failed: RuntimeError: no critic today" in capsys.readouterr().out
    assert {"behavior", "policy-gaussian"} <= {*pd.read_csv(output, comment="#")["case"]}
    monkeypatch.setattr(bench, "bench_stage", whole)
    bench.main([*given, "--missing", "--seconds", "-1"])
    assert "left: 1 cases of the benchmark" in capsys.readouterr().out
    bench.main([*given, "--missing"])
    said = capsys.readouterr().out
    assert "critic" in said
    assert "behavior" not in said
