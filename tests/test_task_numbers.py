"""Numbers in a task's YAML file are read as people mean them, and refused where they make no sense."""

import json
from dataclasses import replace

import numpy as np
import pytest
import samples
import yaml

from aepo import files
from aepo.data import datasets, tasks

GOOD = "dataset: mine/pendulum-v0\nenv_id: Pendulum-v1\nhorizon: 200\n"


def read(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return tasks.get(str(path))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0200", 200), ("010", 10), ("09", 9), ("-0150", -150), ("1_000", 1000), ("+7", 7),
        ("1e-3", 1e-3), ("2E5", 2e5), ("-1.5e+2", -150.0), ("1.", 1.0), (".5", 0.5), ("-.inf", -float("inf")),
        ("1:30", "1:30"), ("0x10", "0x10"), ("2020-13-45", "2020-13-45"), ("1e", "1e"), ("yes", True), ("~", None),
    ],
)  # fmt: skip
def test_a_number_is_what_it_looks_like(text, number):
    found = yaml.load(text, tasks.Plain)
    assert (found, type(found)) == (number, type(number))


def test_a_whole_file_of_them(tmp_path):
    task = read(tmp_path, GOOD.replace("200", "0200") + "references: [-1_200, -0150]\nenv_kwargs: {g: 09, m: 1e-1}\n")
    assert (task.horizon, task.references, task.env_kwargs) == (200, (-1200, -150), {"g": 9, "m": 0.1})


def test_merged_keys_may_be_given_again(tmp_path):
    merged = "env_kwargs: &base {a: 1, b: 2}\nsettings: {critic: {<<: {steps: 3, batch: 4}, steps: 5}}\n"
    assert read(tmp_path, GOOD + merged).settings["critic"].items() >= {"steps": 5, "batch": 4}.items()


IN_ORDER = "references must be two numbers, low before high, got "
BAD = {
    "equal": ("references: [3, 3]", IN_ORDER + "[3.0, 3.0]"),
    "swapped": ("references: [3, 1]", IN_ORDER + "[3.0, 1.0]"),
    "hardly apart": ("references: [1e9, 1000000000.0001]", IN_ORDER),
    "nearly nothing": ("references: [0, 1e-300]", IN_ORDER),
    "infinite": ("references: [0, .inf]", "references: 1: it should be a finite number, got inf"),
    "NaN": ("references: [.nan, 1]", "references: 0: it should be a finite number, got nan"),
    "text": ("references: ['0', 1]", "references: 0: it should be a valid number, got '0'"),
    "true": ("references: [true, 2]", "references: 0: it should be a valid number, got True"),
    "enormous": ("references: [0, 1e300]", IN_ORDER + "[0.0, 1e+300]"),
    "a key twice": ("horizon: 300", "the key 'horizon' stands twice: leave one"),
    "below": ("settings: {critic: {steps: 1, steps: 2}}", "the key 'steps' stands twice: leave one"),
    "depth": ("settings: {critic: {depth: 101}}", "critic: depth: it should be less than or equal to 100, got 101"),
    "steps": ("settings: {critic: {steps: 10000000000}}", "steps: it should be less than or equal to 1000000000, got"),
    "digits": (f"settings: {{critic: {{steps: {'9' * 5000}}}}}", "critic: steps: it should be a valid integer, got inf"),
    "beta": ("settings: {evaluation: {beta: {aepo: 1e300}}}", "beta: aepo: it should be less than or equal to 1000000000"),
    "no scales": ("settings: {evaluation: {curve_scales: []}}", "curve_scales: List should have at least 1 item"),
    "long name": (f"name: {'a' * 101}", "name: String should have at most 100 characters, got 'aaa"),
    "argument": ("env_kwargs: {max_episode_steps: 3}", "env_kwargs: max_episode_steps is set by the study"),
    "bytes": ("env_kwargs: {a: !!binary aGk=}", "env_kwargs: a: input was not a valid JSON value, got b'hi'"),
    "a circle": ("env_kwargs: &a {b: *a}", "cyclic reference detected"),
    "too deep": ("env_kwargs: {a: " + "[" * 3000, "cannot be read (it is nested too deeply)"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), BAD.values(), ids=BAD)
def test_what_makes_no_sense_is_one_short_sentence(tmp_path, text, sentence):
    with pytest.raises(ValueError) as said:
        read(tmp_path, GOOD + text + "\n")
    assert str(said.value).startswith(f"task file {tmp_path}/mine.yaml: ")
    assert sentence in str(said.value)
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 400


@pytest.mark.parametrize("horizon", ["1:30", "1e300", "1000001", "99999999999999999999", "-1", "0"])
def test_a_horizon_that_makes_no_sense(tmp_path, horizon):
    with pytest.raises(ValueError, match="horizon: it should be "):
        read(tmp_path, GOOD.replace("200", horizon))


def test_a_file_in_another_encoding_is_said(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(GOOD.encode() + b"# caf\xe9\n")
    with pytest.raises(ValueError, match=r"cannot be read \(it is not UTF-8 text\)"):
        tasks.get(str(tmp_path / "mine.yaml"))
    assert read(tmp_path, "\ufeff" + GOOD + "# café\n").horizon == 200


ADVICE = {  # a file, a word of what is said, and the file as it advises
    "name": (GOOD + "name: maze2d-umaze", "give it another `name:`", GOOD + "name: my-umaze"),
    "references": (GOOD + "references: [3, 1]", "low before high", GOOD + "references: [1, 3]"),
    "twice": (GOOD + "horizon: 200", "leave one", GOOD),
    "argument": (GOOD + "env_kwargs: {max_episode_steps: 3}", "leave it out", GOOD),
    "keys": (GOOD.replace("horizon", "steps"), "horizon", GOOD),
    "id": (GOOD.replace("-v0", ""), "namespace/name-v0", GOOD.replace("mine/pendulum-v0", "namespace/name-v0")),
}


@pytest.mark.parametrize(("text", "advice", "mended"), ADVICE.values(), ids=ADVICE)
def test_what_is_advised_ends_the_trouble(tmp_path, text, advice, mended):
    with pytest.raises(ValueError) as said:
        read(tmp_path, text + "\n")
    assert advice in str(said.value)
    assert read(tmp_path, mended + "\n").horizon == 200


def test_advice_on_names_of_tasks(tmp_path):
    with pytest.raises(ValueError, match="unknown task 'maze2d-moon': choose one of ") as said:
        tasks.get("maze2d-moon")
    assert all(tasks.get(name.strip()) for name in str(said.value).partition("one of ")[2].split(", ...")[0].split(","))
    one, two = tmp_path / "one" / "my.yaml", tmp_path / "two" / "my.yaml"
    for path in (one, two):
        path.parent.mkdir()
        path.write_text(GOOD)
    with pytest.raises(ValueError, match="give one another `name:` in its YAML file"):
        tasks.choose(f"{one},{two}")
    two.write_text(GOOD + "name: other\n")
    assert [task.name for task in tasks.choose(f"{one},{two}")] == ["my", "other"]


def test_a_home_that_nobody_has_is_no_file():
    with pytest.raises(ValueError, match=r"task file ~nobody-here/x\.yaml: cannot be read \(No such file"):
        tasks.get("~nobody-here/x.yaml")


@pytest.mark.parametrize("stored", [(1, 1), (2, 1), (float("nan"), 1), (0, float("inf")), (0, 10**300), (0, 1e-300)])
def test_references_stored_with_data_are_in_order_too(folder, stored):
    """And the advised ones of a task file take their place, or are corrected."""
    path = samples.hopper(dataset_id="mine/hopper-v0") / "data" / "metadata.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"ref_min_score": stored[0], "ref_max_score": stored[1]}))
    text = "dataset: mine/hopper-v0\nenv_id: Hopper-v5\nhorizon: 200\n"
    with pytest.raises(files.StudyError, match=r"metadata\.json has the reference scores .* not low before high: corr"):
        datasets.load(read(folder, text), "smoke")
    advised = read(folder, text + "references: [1, 2]\n")
    assert datasets.load(advised, "smoke").reference_scores == (1, 2)
    path.write_text(json.dumps(found | {"ref_min_score": -1, "ref_max_score": 1e3}))
    assert datasets.load(read(folder, text), "smoke").reference_scores == (-1, 1000)


def test_without_references_scores_run_from_the_worst_to_the_best_twentieth_of_the_episodes(folder):
    path = samples.hopper(dataset_id="mine/hopper-v0") / "data" / "metadata.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in found.items() if not key.startswith("ref_")}))
    task = read(folder, "dataset: mine/hopper-v0\nenv_id: Hopper-v5\nhorizon: 200\n")
    data = datasets.load(task, "smoke")
    returns = np.sort(datasets.recorded_returns(data, 200, False))
    count = max(1, len(returns) // 20)
    assert data.reference_scores == pytest.approx((returns[:count].mean(), returns[-count:].mean()))
    assert datasets.load(replace(task, env_id=None), "smoke").reference_scores is None
