"""A user's own task: its YAML file, and what is said where it is wrong."""

import json
from pathlib import Path

import pytest

from aepo import environments, files, settings
from aepo.data import tasks
from aepo.study import notebooks, runs

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "my-task.yaml"
GOOD = "dataset: mine/pendulum-v0\nenv_id: Pendulum-v1\nhorizon: 200\n"


def write(folder, text, name="mine.yaml"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_the_example_is_a_task(tmp_path):
    task = tasks.get(str(EXAMPLE))
    assert (task.name, task.source, task.horizon) == ("my-pendulum", tasks.MINARI, 200)
    assert set(task.dataset_ids) == set(settings.PROFILES)
    assert settings.for_task("smoke", task.settings).critic.discount == 0.95
    env = environments.make(task)
    assert env.unwrapped.g == 9.81
    assert env.spec.max_episode_steps == 200
    run = runs.open_run(str(EXAMPLE), [0], ["bc"], "smoke", "cpu", tmp_path / "runs")
    assert run.folder == tmp_path / "runs" / "smoke" / "my-pendulum"
    assert tasks.get(run.task.argument) == task


def test_the_example_of_other_peoples_data_is_a_task(tmp_path):
    (tmp_path / "pendulum_v1.1.0.h5").write_bytes(b"")
    task = tasks.get(write(tmp_path, (ROOT / "examples" / "pendulum-replay.yaml").read_text()))
    assert (task.env_id, task.horizon, task.references) == ("Pendulum-v1", 200, (-1250, -150))


def test_the_least_a_file_must_say(tmp_path):
    task = tasks.get(write(tmp_path, GOOD))
    assert (task.name, task.references, task.observation_keys) == ("mine", None, ())
    assert settings.for_task("quick", task.settings).critic.reward_scale is None, "scaled by the data's rewards"


def test_settings_of_one_method_leave_those_of_the_others(tmp_path):
    task = tasks.get(
        write(tmp_path, GOOD + "settings: {evaluation: {beta: {aepo: 7}, episodes: 5}, critic: {steps: 9}}\n")
    )
    profile = settings.for_task("full", task.settings)
    assert profile.evaluation.beta["aepo"] == 7
    assert set(profile.evaluation.beta) == set(settings.FULL.evaluation.beta)
    assert (profile.evaluation.episodes, profile.critic.steps, profile.critic.discount) == (5, 9, None)


def test_an_hdf5_file_is_found_beside_the_task(tmp_path):
    (tmp_path / "data.hdf5").write_bytes(b"1")
    path = write(tmp_path, GOOD.replace("mine/pendulum-v0", "data.hdf5"))
    first = tasks.get(path)
    assert (first.source, first.file) == (tasks.D4RL, str(tmp_path / "data.hdf5"))
    (tmp_path / "data.hdf5").write_bytes(b"22")
    assert tasks.get(path).dataset_ids != first.dataset_ids


def test_settings_may_be_true_or_false_and_nothing(tmp_path):
    task = tasks.get(write(tmp_path, GOOD + "settings: {critic: {return_floor: false, reward_scale: null}}\n"))
    assert task.settings["critic"]["return_floor"] is False
    assert task.settings["critic"]["reward_scale"] is None


BAD = [
    ("nonsense: [", "is not YAML"),
    ("- 1\n- 2\n", "must hold keys and values: name, dataset"),
    ("dataset: a-v0\nenv_id: X-v0\n", "missing key 'horizon'"),
    (GOOD + "speed: 3\n", "unknown key 'speed'"),
    (GOOD.replace("horizon", "horizn"), "unknown key 'horizn'; keys: name, dataset, env_id, horizon"),
    (GOOD.replace("200", "fast"), "horizon: it should be a valid integer, got 'fast'"),
    (GOOD.replace("200", "0"), "horizon: it should be greater than or equal to 1, got 0"),
    (GOOD.replace("200", "true"), "horizon: it should be a valid integer, got True"),
    (GOOD + "name: a b\n", "name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9_-]*$', got 'a b'"),
    (GOOD + "name: maze2d-umaze\n", "the name 'maze2d-umaze' is taken"),
    (GOOD + "references: [3, 1]\n", "references must be two numbers, low before high"),
    (GOOD + "references: [3]\n", "references: List should have at least 2 items after validation, not 1, got [3]"),
    (GOOD + "observation_keys: [1]\n", "observation_keys: 0: it should be a valid string, got 1"),
    (GOOD + "settings: {critics: {discount: 1}}\n", "unknown key 'critics' in settings; keys: data, behavior"),
    (
        GOOD + "settings: {critic: {discont: 1}}\n",
        "unknown key 'discont' in settings: critic; keys: width, depth, steps",
    ),
    (
        GOOD + "settings: {critic: {discount: high}}\n",
        "settings: critic: discount: it should be a valid number, got 'high'",
    ),
    (GOOD + "settings: {critic: {kind: sac}}\n", "critic: kind: it should be 'expectile' or 'softmax', got 'sac'"),
    (GOOD + "settings: {energy: {gate: 2}}\n", "energy: gate: it should be False, True or 'jacobian', got 2"),
    (
        GOOD + "settings: {behavior: {error: q}}\n",
        "behavior: error: it should be 'velocity', 'noise' or 'clean', got 'q'",
    ),
    (GOOD + "settings: {evaluation: {t_start: 0}}\n", "evaluation: t_start: it should be greater than 0.001, got 0"),
    (GOOD + "settings: {critic: {batch: 1}}\n", "critic: batch: it should be greater than or equal to 2, got 1"),
    (GOOD + "settings: {critic: {steps: 1.5}}\n", "settings: critic: steps: it should be a valid integer, got 1.5"),
    (
        GOOD + "settings: {evaluation: {beta: {sac: 1}}}\n",
        "settings: evaluation: beta: sac: it should be 'bc-weighted', 'qgpo', ",
    ),
    (GOOD + "settings: {critic: {return_floor: 0}}\n", "critic: return_floor: it should be a valid boolean, got 0"),
    (GOOD + "settings: {critic: {discount: 1}}\n", "critic: discount: it should be less than 1, got 1"),
    (GOOD + "settings: {critic: {discount: 0}}\n", "critic: discount: it should be greater than 0, got 0"),
    (
        GOOD + "settings: {behavior: {variance_times: 1}}\n",
        "behavior: variance_times: it should be greater than or equal to 2, got 1",
    ),
    (GOOD + "settings: {behavior: {ema_rate: .nan}}\n", "behavior: ema_rate: it should be a finite number, got nan"),
    (
        GOOD + "settings: {policy: {rounds: 0}}\n",
        "settings: policy: rounds: it should be greater than or equal to 1, got 0",
    ),
    (GOOD + "settings: {evaluation: {beta: {iql: 0}}}\n", "evaluation: beta: iql: it should be greater than 0, got 0"),
    (GOOD.replace("mine/pendulum-v0", "not there"), "dataset must be a Minari id"),
    (GOOD.replace("mine/pendulum-v0", "no.hdf5"), "there is no dataset file"),
]


def test_every_switch_can_be_set(tmp_path):
    switches = {
        "critic": {"kind": "softmax"}, "evaluation": {"pick": "softmax", "t_start": 0.5}, "behavior": {"error": "clean"},
        "energy": {"form": "taylor-2", "gate": "jacobian", "bregman": False, "clamp": False, "differentiated": True},
    }  # fmt: skip
    task = tasks.get(write(tmp_path, GOOD + f"settings: {json.dumps(switches)}\n"))
    profile = settings.for_task("quick", task.settings)
    for stage, values in switches.items():
        assert {key: getattr(getattr(profile, stage), key) for key in values} == values


@pytest.mark.parametrize(("text", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_a_wrong_file_gets_one_sentence(tmp_path, text, sentence):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as said:
        tasks.get(path)
    assert str(said.value).startswith(f"task file {path}: ")
    assert sentence in str(said.value)
    assert "\n" not in str(said.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read \(No such file"):
        tasks.get(str(tmp_path / "no.yaml"))


def test_wrong_environments_are_said(tmp_path):
    for text, sentence in (
        (GOOD.replace("Pendulum-v1", "Pendulum-v77"), "cannot be made"),
        (GOOD + "env_kwargs: {wings: 2}\n", "cannot be made .*wings"),
        (GOOD + "observation_keys: [here]\n", "plain observations: leave observation_keys empty"),
        (
            GOOD.replace("Pendulum-v1", "PointMaze_UMaze-v3"),
            "dict observations .*name the parts to take in the task's observation_keys",
        ),
        (
            GOOD.replace("Pendulum-v1", "PointMaze_UMaze-v3") + "observation_keys: [here]\n",
            "its task takes here: name the parts",
        ),
        (GOOD.replace("Pendulum-v1", "CartPole-v1"), "only vectors of real numbers can be used"),
        (GOOD.replace("Pendulum-v1", "null"), "train-only"),
    ):
        with pytest.raises(files.StudyError, match=sentence):
            environments.make(tasks.get(write(tmp_path, text)))


def test_a_change_of_what_is_evaluated_runs_notebooks_again(tmp_path):
    """Not one of where the file lies."""

    def hashed(text, name="task.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return notebooks.settings_hash(tasks.get(str(path)), "smoke")

    own = hashed(GOOD + "name: mine\n")
    assert own == hashed(GOOD + "name: mine\n", "moved.yaml")
    for change in ("references: [1, 3]\n", "env_kwargs: {g: 1.0}\n"):
        assert own != hashed(GOOD + "name: mine\n" + change)
    assert own != hashed(GOOD.replace("200", "100") + "name: mine\n")
