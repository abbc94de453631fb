"""Variants of a run: what is shared stays shared, what is changed is trained again, and rows say which is which."""

from dataclasses import replace

import pytest

from aepo import files, methods, settings
from aepo.study import ablations, evaluation, guidance_scale, results, stages, tables, verify


def test_every_variant_fits_the_settings():
    profile = settings.QUICK
    for variant in ablations.VARIANTS:
        assert variant.question in ablations.QUESTIONS
        assert set(variant.methods) <= set(methods.METHODS)
        for stage, values in variant.settings.items():
            assert set(values) <= set(getattr(profile, stage).__dataclass_fields__)
    names = [variant.name for variant in ablations.VARIANTS]
    assert len(set(names)) == len(names)
    assert not [name for name in names if set(name) & set(",/:")], "they name folders"
    assert {v.question for v in ablations.variants_of("smoke")} == {*ablations.QUESTIONS} - {*ablations.STEPS}


def test_a_variant_shares_what_it_does_not_touch(run, data, tiny, monkeypatch):
    monkeypatch.setitem(settings.PROFILES, "smoke", tiny)
    variant = ablations.Variant(
        "twice", "grid", ("aepo-cubature",), {"evaluation": {"beta": 2.0, "guidance_scale": 2.0}}
    )
    stages.train_behavior(run, data), stages.train_critic(run, data)
    monkeypatch.setattr(stages, "fit", lambda *a, **k: pytest.fail("trained again"))
    rows = ablations.evaluate(run, variant)
    assert set(rows["variant"]) == {"twice"}
    assert set(rows["beta"]) == set(rows["guidance_scale"]) == {2.0}
    own = ablations.variant_run(run, variant)
    assert own.folder == run.folder / "ablations" / "twice"
    assert own.profile.evaluation.beta["aepo"] == 3.0
    for stage in ("behavior", "critic"):
        assert own.artifact(stage).read_bytes() == run.artifact(stage).read_bytes()
    kept = results.read_returns(run.folder / "evaluation" / "ablation-twice.csv")
    assert len(kept) == len(rows) == 2 * tiny.evaluation.episodes


def test_what_a_variant_leaves_as_it_is_is_not_played_again(run, data, tiny, monkeypatch):
    monkeypatch.setitem(settings.PROFILES, "smoke", tiny)
    variant = ablations.Variant("same", "noise", ("bc",), {"evaluation": {"noise_scale": 1.0}})
    stages.train_behavior(run, data)
    stages.train_critic(run, data)
    rollouts = evaluation.evaluate(run, "bc")
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "play", lambda *a, **k: pytest.fail("played again"))
        rows = ablations.evaluate(run, variant)
    assert rows["return"].tolist() == rollouts.returns.flatten().tolist()
    assert not list(verify.problems(ablations.variant_run(run, variant).folder))
    other = ablations.Variant("other", "noise", ("bc",), {"evaluation": {"noise_scale": 0.5}})
    ablations.evaluate(run, other)
    assert (evaluation.evaluate(ablations.variant_run(run, other), "bc").states != rollouts.states).any()


def test_a_changed_critic_is_trained_for_the_variant_alone(run, data, tiny, monkeypatch):
    monkeypatch.setitem(settings.PROFILES, "smoke", tiny)
    variant = next(v for v in ablations.VARIANTS if v.question == "floor")
    stages.train_behavior(run, data), stages.train_critic(run, data)
    before = run.artifact("critic").read_bytes()
    ablations.evaluate(run, variant)
    assert run.artifact("critic").read_bytes() == before
    own = files.load_tensors(ablations.variant_run(run, variant).artifact("critic"))[1]["settings"]
    assert own["return_floor"] is False


def test_a_behavior_of_other_steps_leaves_the_critic_as_it_is(run, data, tiny, monkeypatch):
    monkeypatch.setitem(settings.PROFILES, "smoke", tiny)
    steps = 2 * tiny.behavior.steps
    variant = ablations.Variant("longer", "steps", ("aepo-cubature",), {"behavior": {"steps": steps}})
    stages.train_behavior(run, data), stages.train_critic(run, data)
    ablations.evaluate(run, variant)
    own = ablations.variant_run(run, variant)
    assert files.load_tensors(own.artifact("behavior"))[1]["settings"]["steps"] == steps
    assert files.load_tensors(run.artifact("behavior"))[1]["settings"]["steps"] == tiny.behavior.steps
    assert own.artifact("critic").read_bytes() == run.artifact("critic").read_bytes()


def test_the_questions_about_the_steps_of_study_are_asked_there_alone():
    asked = {profile: {v.question for v in ablations.variants_of(profile)} for profile in ("smoke", "quick", "study")}
    assert asked["study"] - asked["quick"] == {*ablations.STEPS}
    assert asked["smoke"] == asked["quick"]
    for variant in (v for v in ablations.VARIANTS if v.question in ablations.STEPS and v.number):
        ((stage, values),) = variant.settings.items()
        ((key, steps),) = values.items()
        assert steps == variant.times * getattr(getattr(settings.STUDY, stage), key)


def test_rows_of_a_question_stand_beside_what_was_evaluated():
    import pandas as pd

    made = [
        {
            "profile": "quick",
            "task": task,
            "method": method,
            "variant": variant,
            "seed": 0,
            "checkpoint": "last",
            "score": s,
        }
        for task, method, variant, s in (
            ("a", "aepo-cubature", "", 1.0),
            ("a", "aepo-cubature", "beta 1 scale 2", 2.0),
            ("a", "bc", "", 9.0),
            ("b", "aepo-cubature", "", 9.0),
        )
    ]
    rows = tables.variant_scores(pd.DataFrame(made), "quick")
    assert rows[["task", "method", "variant", "score"]].values.tolist() == [
        ["a", "aepo-cubature", "as evaluated", 1.0],
        ["a", "aepo-cubature", "beta 1 scale 2", 2.0],
    ]


def test_the_search_compares_three_values_on_starred_tasks_that_have_them_all():
    import pandas as pd

    made = []
    for task, level in (
        ("local-hopper-medium-expert", 10.0),
        ("local-halfcheetah-mixed", 20.0),
        ("local-walker2d-mixed", 90.0),
    ):
        for k, beta in enumerate((1.5, 3, 6)):
            if (task, beta) != ("local-halfcheetah-mixed", 6):
                made += [("search", task, "iql", f"iql beta {beta:g}", seed, level + k + seed) for seed in (0, 1)]
        made += [("search", task, "aepo", f"aepo scale {2 * f:g}", 0, level - f) for f in (0.5, 1, 2)]
        made += [("noise", task, "iql", f"noise {n}", 0, 9.0) for n in (0.25, 0.5, 1)]
        made += [("noise", task, "qipo", f"noise {n:g}", 0, 9.0 - n) for n in (0.0, 0.25, 0.5, 1.0)]
    rows = pd.DataFrame(made, columns=["question", "task", "method", "variant", "seed", "score"])
    found = tables.search_table(rows).set_index("method")
    assert found.loc["iql"].drop(0.0).tolist() == ["robots", "beta", 1, 10.5, 11.5, 12.5], "its noise is not searched"
    assert found.loc["aepo"].drop(0.0).tolist() == ["robots", "scale", 2, 14.5, 14.0, 13.0]
    assert found.loc["qipo"].tolist() == ["robots", "noise", 2, 9.0, 8.75, 8.5, 8.0]
    assert "| robots, 1 | `iql` | beta | - | 10.5 | 11.5 | **12.5** |" in tables.markdown_search(
        tables.search_table(rows)
    )


def test_every_method_has_the_same_three_values_of_one_number_and_four_of_the_noise():
    from aepo.methods import METHODS

    own = [v for v in ablations.VARIANTS if v.question == "search"]
    assert {name for v in own for name in v.methods} == {*METHODS} - {"bc", "bc-low-noise"}
    for method in {*METHODS} - {"bc", "bc-low-noise"}:
        mine = [v for v in own if [*v.methods] == [method]]
        ((stage, key),) = {(stage, key) for v in mine for stage, values in v.settings.items() for key in values}
        values = [v.settings[stage][key] for v in mine]
        assert [v.times for v in mine] == [0.5, 1, 2] == [value / values[1] for value in values]
    for variant in (v for v in ablations.VARIANTS if v.question == "noise"):
        assert variant.settings["evaluation"]["noise_scale"] == variant.times / 2
        silent = {"bc", "iql", "td3bc", "diffusion-ql", *(["best-of-n"] if variant.times == 0 else [])}
        assert {*variant.methods} == {*METHODS} - silent


def test_more_or_less_guidance_takes_the_runs_own_energy_networks(run, data, tiny, monkeypatch):
    """The rule's scale times a factor: nothing is trained, and only the run's own methods are asked."""
    monkeypatch.setitem(settings.PROFILES, "smoke", tiny)
    monkeypatch.setattr(guidance_scale, "STATES", 20)
    behavior, critic = stages.train_behavior(run, data), stages.train_critic(run, data)
    stages.train_energy(run, data, behavior, critic, "aepo")
    scales = guidance_scale.matched_scales(run, "aepo", 3.0)
    monkeypatch.setattr(stages, "fit", lambda *a, **k: pytest.fail("trained again"))
    variant = next(v for v in ablations.VARIANTS if v.name == "aepo scale 2")
    rows = ablations.evaluate(run, variant)
    assert set(rows["method"]) == {"aepo"} == set(run.methods) - {"bc"}
    assert rows.groupby("seed")["guidance_scale"].first().tolist() == [2 * scale for scale in scales]
    found = list(verify.problems(ablations.variant_run(run, variant).folder))
    assert [problem for problem in found if "returns.csv" not in problem] == []


def test_a_variant_of_other_networks_than_the_runs_is_left_out(run, data, tiny, monkeypatch, capsys):
    monkeypatch.setitem(settings.PROFILES, "smoke", tiny)
    run = replace(run, methods=("bc",))
    variant = ablations.Variant("other", "noise", ("bc",), {"evaluation": {"noise_scale": 0.5}})
    stages.train_behavior(run, data), stages.train_critic(run, data)
    ablations.evaluate(run, variant)
    assert "other" in set(results.write_returns(run, data)["variant"])
    table = run.folder / "returns.csv"
    text = table.read_text()
    told = lambda: [problem for problem in verify.problems(run.folder) if "ablations/" in problem]  # noqa: E731
    assert told() == []
    line = next(line for line in text.splitlines() if ",other," in line)
    cells = line.split(",")
    cells[results.COLUMNS.index("return")] = "299.5"
    table.write_text(text.replace(line, ",".join(cells)))
    assert any(
        "column return of bc is not what ablations/other/evaluation/bc" in p for p in verify.problems(run.folder)
    )
    wider = replace(tiny, behavior=replace(tiny.behavior, width=24))
    monkeypatch.setitem(settings.PROFILES, "smoke", wider)
    stages.train_behavior(run, data)
    assert "other" not in set(results.write_returns(run, data)["variant"])
    with monkeypatch.context() as patched:
        patched.setattr(stages, "fit", lambda *a, **k: pytest.fail("trained again"))
        ablations.evaluate(run, variant)  # takes the run's new networks
    assert "other" in set(results.write_returns(run, data)["variant"])
    assert "ablation-other.csv is of another run by now" in capsys.readouterr().out
    shorter = replace(run, task=replace(run.task, horizon=run.task.horizon - 1))
    assert "other" not in set(results.write_returns(shorter, data)["variant"])


def test_variants_of_a_train_only_task_are_refused(run):
    only = replace(run, task=replace(run.task, env_id=None))
    with pytest.raises(files.StudyError, match="is train-only"):
        ablations.evaluate(only, ablations.VARIANTS[0])


def test_variants_of_qipo_share_its_rounds(run):
    names = ablations._used(replace(run, methods=("qipo",)))
    assert names == [
        "behavior", "critic", "policy-qipo-b12", "policy-qipo-b12-round1", "support", "support-policy-qipo-b12-round2"
    ]  # fmt: skip
