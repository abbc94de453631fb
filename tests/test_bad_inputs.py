"""Bad inputs over the whole study: each has its exit code and one sentence that names the culprit, and changes nothing."""

import functools
import json
import os
import pickle
import shutil
import tempfile
from dataclasses import replace

import h5py
import pytest
import safetensors.torch
import samples
import torch

from aepo import batch, cli, files, methods, progress, settings
from aepo.core import losses
from aepo.data import datasets, tasks
from aepo.study import results, runs, stages

TASK, HOPPER = "maze2d-umaze", "d4rl-hopper-medium-v2"
METHODS = ("bc", "aepo", "aepo-support", "iql")
NAME = f"runs/smoke/{TASK}"


def study(run, *_):
    """What the notebooks call, in this process: in place of batch.reproduce, which starts Snakemake."""
    run = run if isinstance(run, runs.Run) else run[0]
    datasets.prepare(run.task, run.profile_name, run.profile.data)
    data = datasets.load(run.task, run.profile_name)
    runs.record_data(run.folder, data)
    behavior, critic = stages.train_behavior(run, data), stages.train_critic(run, data)
    for method in methods.energies(run.methods):
        stages.train_energy(run, data, behavior, critic, method)
    for method in methods.policies(run.methods):
        stages.train_policy(run, data, behavior, critic, method)
    results.write_returns(run, data)
    results.merge_results(run)


def small(name=None):
    """The smoke profile, so small that a study takes two seconds."""
    smoke = settings.SMOKE
    return replace(
        smoke,
        behavior=replace(smoke.behavior, width=16, steps=20, batch=32, variance_times=5, variance_samples=64),
        critic=replace(smoke.critic, width=16, steps=20, batch=32),
        energy=replace(smoke.energy, width=16, steps=20, batch=32, support_states=32),
        policy=replace(smoke.policy, width=16, steps=20, batch=32),
        evaluation=replace(smoke.evaluation, episodes=1, solver_steps=2),
        chunk=10,
    )


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The runs folder of a finished study."""
    folder = tmp_path_factory.mktemp("finished") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings.PROFILES, "smoke", small())
        patch.chdir(folder.parent)  # no checkout, as in the tests: the manifest names no commit
        patch.setattr("aepo.data.tasks.TASKS", tasks.TASKS | {TASK: replace(tasks.TASKS[TASK], horizon=20)})
        study(runs.open_run(TASK, [0, 1], METHODS, "smoke", "cpu", folder))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A temporary working folder; `reproduce` works in this process, with tiny settings and no progress bars."""
    monkeypatch.setitem(settings.PROFILES, "smoke", small())
    monkeypatch.setattr("aepo.data.tasks.TASKS", tasks.TASKS | {TASK: replace(tasks.TASKS[TASK], horizon=20)})
    monkeypatch.setattr(batch, "reproduce", study)
    monkeypatch.setattr(progress, "tqdm", functools.partial(progress.tqdm, disable=True))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kept(folder):
    """Every file of the runs folder, locks and progress left out."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p): p.read_bytes() for p in found if not {".locks", "progress"} & set(p.parts)}


def aepo(capsys, monkeypatch, line):
    """Exit code, output and error output of the console script."""
    monkeypatch.setattr("sys.argv", ["aepo", *line.split()])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code or 0, *capsys.readouterr()


def check(capsys, monkeypatch, folder, line, sentence, code=1):
    before = kept(folder / "runs")
    found, _, error = aepo(capsys, monkeypatch, line)
    assert found == code
    if code == 1:
        assert error.startswith("aepo: ")
        assert error.count("\n") == 1, error
        assert len(error) < 900
    assert sentence in " ".join(error.split()), error
    assert kept(folder / "runs") == before
    assert not (folder / "evil").exists(), "a file ran code"


class Evil:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self):
        return os.system, ("touch evil",)


POISON = pickle.dumps(Evil())


# ---- parameters

REPRODUCE = f"reproduce --profile smoke --methods {','.join(METHODS)} --device cpu --runs-dir runs --task "
PARAMETERS = {
    "task": (REPRODUCE + "maze2d-moon", "unknown task 'maze2d-moon': choose one of maze2d-"),
    "method": (
        REPRODUCE + f"{TASK} --methods aepo,sac",
        "unknown method 'sac': choose from bc, bc-low-noise, bc-weighted",
    ),
    "method twice": (REPRODUCE + f"{TASK} --methods bc,bc", "methods must be distinct, at least one"),
    "no task": (REPRODUCE + ",", "no task is named in ','"),
    "profile": (
        REPRODUCE + f"{TASK} --profile huge",
        "unknown profile 'huge': choose one of smoke, quick, study, full",
    ),
    "negative seeds": (REPRODUCE + f"{TASK} --seeds=-1", "seeds must be a number of seeds from 1 to 1000, got '-1'"),
    "no seeds": (REPRODUCE + f"{TASK} --seeds 0", "seeds must be a number of seeds from 1 to 1000, got '0'"),
    "words": (REPRODUCE + f"{TASK} --seeds many", "seeds must be a number of seeds from 1 to 1000, got 'many'"),
    "odd seeds": (REPRODUCE + f"{TASK} --seeds=--5", "seeds must be a number of seeds from 1 to 1000, got '--5'"),
    "enormous": (REPRODUCE + f"{TASK} --seeds 99999999999", "seeds must be a number of seeds from 1 to 1000, got"),
    "digits": (REPRODUCE + f"{TASK} --seeds {'9' * 99}", "seeds must be a number of seeds from 1 to 1000, got"),
    "device": (REPRODUCE + f"{TASK} --device tpu", "unknown device 'tpu': choose auto, cpu or cuda"),
    "folder": (REPRODUCE + f"{TASK} --runs-dir /proc/no", f"cannot write to the run folder /proc/no/smoke/{TASK}"),
    "file": (REPRODUCE + f"{TASK} --runs-dir /dev/null/a", f"cannot write to the run folder /dev/null/a/smoke/{TASK}"),
    "data of none": ("data show maze2d-moon", "unknown task 'maze2d-moon'"),
    "data profile": (f"data show {TASK} --profile huge", "unknown profile 'huge'"),
    "not on disk": ("data show pen-human-v2", "run notebook 03_dataset first, or `aepo data get pen-human-v2"),
    "by hand": ("data get d4rl-kitchen-mixed-v0", "run `aepo data import FILE --task d4rl-kitchen-mixed-v0`"),
    "no recipe": ("data collect pointmaze-umaze-v2", "the task local-pointmaze-umaze makes such data"),
    "no recipes": ("data collect --suite pointmaze", "the data of suite pointmaze are not collected here"),
    "no suite": ("data collect --suite moon", "unknown suite 'moon'"),
    "no file": (f"data import nowhere.hdf5 --task {HOPPER}", "there is no file nowhere.hdf5"),
    "no run": ("results --runs-dir runs", "runs/results.csv is missing: run `make reproduce` or"),
    "no folder": ("export runs/nowhere out", "there is no run folder runs/nowhere"),
    "no home": (
        "results --runs-dir ~nobody-here/runs",
        "there is no home folder ~nobody-here: give the path of another",
    ),
    "no home to verify": ("verify ~nobody-here/runs", "there is no home folder ~nobody-here: give the path of another"),
}


@pytest.mark.parametrize(("line", "sentence"), PARAMETERS.values(), ids=PARAMETERS)
def test_a_bad_parameter(place, capsys, monkeypatch, line, sentence):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "minari"))
    check(capsys, monkeypatch, place, line, sentence)
    assert {path.name for path in place.iterdir()} <= {"minari"}
    assert samples.written(place) == {}


@pytest.mark.parametrize(
    "line", ["reproduce --speed 9", "dance", "data collect", "export", "theory --cores=-1", "reproduce --memory=-1"]
)
def test_a_wrong_call(place, capsys, monkeypatch, line):
    check(capsys, monkeypatch, place, line, "Usage: ", code=2)


# ---- task files

GOOD = "dataset: mine/pendulum-v0\nenv_id: Pendulum-v1\nhorizon: 200\n"
TASK_FILES = {
    "YAML tag": (GOOD + 'name: !!python/object/apply:os.system ["touch evil"]\n', "is not YAML (could not determine"),
    "pickle": (POISON.decode("latin-1"), "is not YAML"),
    "no YAML": ("nonsense: [", "is not YAML"),
    "key": (GOOD + "speed: 3\n", "unknown key 'speed'"),
    "setting": (GOOD + "settings: {critic: {discont: 1}}\n", "unknown key 'discont' in settings: critic"),
    "dataset": (GOOD.replace("mine/pendulum-v0", "no.hdf5"), "there is no dataset file"),
    "environment": (GOOD.replace("mine/pendulum-v0", "data.hdf5").replace("Pendulum", "Moon"), "Moon-v1 of task mine"),
}


@pytest.mark.parametrize(("text", "sentence"), TASK_FILES.values(), ids=TASK_FILES)
def test_a_bad_task_file(place, capsys, monkeypatch, text, sentence):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "minari"))
    samples.d4rl(place / "data.hdf5")
    (place / "mine.yaml").write_text(text)
    check(capsys, monkeypatch, place, REPRODUCE + "./mine.yaml", sentence)


# ---- data


def metadata(change):
    def spoil(folder):
        path = folder / "metadata.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return spoil


def code_in_spec(found):
    """Metadata without spaces, whose environment is a function of the standard library with an argument."""
    spec = {"id": "Evil-v0", "entry_point": "os:system", "kwargs": {"command": "touch evil"}, "additional_wrappers": []}
    rest = {"reward_threshold": None, "nondeterministic": False, "max_episode_steps": None, "order_enforce": True}
    rest |= {"disable_env_checker": True, "vector_entry_point": None, "namespace": None, "name": "Evil", "version": 0}
    known = {key: value for key, value in found.items() if key not in ("observation_space", "action_space")}
    return known | {"env_spec": json.dumps(spec | rest)}


def cut(path, part=0.5):
    os.truncate(path, int(path.stat().st_size * part))


DATA = {
    "pickle for HDF5": (lambda f: (f / "main_data.hdf5").write_bytes(POISON), "main_data.hdf5 is not an HDF5 file"),
    "truncated": (lambda f: cut(f / "main_data.hdf5"), "main_data.hdf5 is truncated"),
    "pickle for JSON": (lambda f: (f / "metadata.json").write_bytes(POISON), "metadata.json cannot be read"),
    "code for an environment": (metadata(code_in_spec), "names spaces that cannot be read (their environment Evil-v0"),
    "version": (metadata(lambda found: found | {"minari_version": "9.0.0"}), "written by Minari 9.0.0"),
    "empty": (metadata(lambda found: found | {"total_episodes": 0}), "is empty: it holds no episode"),
    "lost steps": (metadata(lambda found: found | {"total_steps": 12}), "should hold 12 steps in 3 episodes"),
    "absurd": (metadata(lambda found: found | {"total_steps": 10**15}), "aepo/d4rl/hopper-medium-v2: out of memory ("),
    "NaN": (samples.at("episode_2/observations", (3, 1), float("nan")), "state holds NaN or infinity (1 numbers"),
    "outside": (samples.at("episode_0/actions", (2, 0), -1.25), "1 of 13 actions are outside the action box"),
    "no rewards": (samples.hdf5(lambda file: file.pop("episode_0/rewards")), "episode 0 lacks a key"),
}


@pytest.mark.parametrize(("spoil", "sentence"), DATA.values(), ids=DATA)
def test_bad_data(place, capsys, monkeypatch, spoil, sentence):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "minari"))
    spoil(samples.hopper(dataset_id=tasks.get(HOPPER).dataset_ids["smoke"]) / "data")
    before = samples.written(place)
    check(capsys, monkeypatch, place, REPRODUCE + HOPPER, sentence)
    assert samples.written(place) == before


FILES = {
    "pickle": (lambda path: path.write_bytes(POISON), "bad.hdf5 is not an HDF5 file"),
    "no terminals": (lambda path: h5py.File(path, "r+").pop("terminals"), "bad.hdf5 has no 'terminals'"),
}


@pytest.mark.parametrize(("spoil", "sentence"), FILES.values(), ids=FILES)
def test_a_bad_file_to_import(place, capsys, monkeypatch, spoil, sentence):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "minari"))
    samples.d4rl(place / "bad.hdf5")
    spoil(place / "bad.hdf5")
    check(capsys, monkeypatch, place, f"data import bad.hdf5 --task {HOPPER}", sentence)
    assert samples.written(place) == {}


# ---- what earlier stages left


def edit(change, stage="behavior", **more):
    """An artefact whose tensors were changed, its checksum right."""

    def spoil(folder):
        path = folder / f"{stage}.safetensors"
        tensors, meta = files.load_tensors(path)
        change(tensors)
        meta = {key: value for key, value in meta.items() if key not in ("format", "sha256")} | more
        files.save_tensors(path, tensors, {key: value for key, value in meta.items() if value is not None})

    return spoil


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def flip(stage):
    def spoil(folder):
        path = folder / f"{stage}.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)

    return spoil


def foreign(folder):
    safetensors.torch.save_file({"w": torch.ones(3)}, folder / "critic.safetensors")


NOISE = "noise_net.net.out.weight"
STUDY, RESULTS = REPRODUCE + TASK, "results --runs-dir runs --profile smoke"
EXPORT = f"export {NAME} out --methods bc,aepo"
LEFT = {
    "pickle": (put("behavior.safetensors", POISON), STUDY, "behavior.safetensors cannot be read"),
    "header cut": (lambda f: cut(f / "critic.safetensors", 0.01), STUDY, "critic.safetensors cannot be read"),
    "cut": (lambda f: cut(f / "critic.safetensors", 0.9), STUDY, "critic.safetensors cannot be read"),
    "empty": (put("critic.safetensors", b""), STUDY, "critic.safetensors cannot be read"),
    "one bit": (flip("critic"), STUDY, "critic.safetensors is damaged (its checksum does not match)"),
    "of others": (foreign, STUDY, "critic.safetensors has format None, this version reads"),
    "of the future": (edit(lambda t: None, format=99), STUDY, "behavior.safetensors has format 99, this version reads"),
    "NaN": (edit(lambda t: t[NOISE].fill_(float("nan"))), STUDY, f"behavior.safetensors: {NOISE} holds NaN"),
    "missing": (edit(lambda t: t.pop(NOISE)), STUDY, f'Missing key(s) in state_dict: "{NOISE}"'),
    "too many": (edit(lambda t: t.update(w=torch.ones(2))), STUDY, 'Unexpected key(s) in state_dict: "w"'),
    "shape": (edit(lambda t: t.update({NOISE: torch.ones(2, 3, 4)})), STUDY, f"size mismatch for {NOISE}"),
    "seeds lost": (edit(lambda t: None, seeds=None), STUDY, "behavior.safetensors does not name its seeds"),
    "rows lost": (edit(lambda t: t.update(variance=torch.ones(3, 5))), STUDY, "the shape (3, 5), not 2 seeds"),
    "support": (edit(lambda t: t.pop("index"), "support"), STUDY, "support.safetensors lacks index or action"),
    "energy": (
        edit(lambda t: t.pop("loc"), "energy-aepo-b3"),
        STUDY,
        'Missing key(s) in state_dict: "loc"',
    ),
    "log": (put("metrics/energy-aepo-b3.parquet", POISON), STUDY, "energy-aepo-b3.parquet cannot be read"),
    "no log": (
        lambda f: (f / "metrics/energy-aepo-b3.parquet").unlink(),
        STUDY,
        "energy-aepo-b3.parquet cannot be read",
    ),
    "manifest": (put("manifest.json", POISON), STUDY, "manifest.json cannot be read"),
    "manifest kind": (put("manifest.json", "[1, 2]"), STUDY, "manifest.json is no file of this study"),
    "results": (put("../results.csv", POISON), RESULTS, "results.csv is no table of returns"),
    "results kind": (put("../results.csv", "a,b\n1,2\n"), RESULTS, "results.csv is no table of returns ('success')"),
    "no document": (lambda f: None, RESULTS + " --document missing.md", "missing.md has no line"),
    "odd document": (put("../../../odd.md", b"\xff\xfe"), RESULTS + " --document odd.md", "odd.md has no line"),
    "export file": (lambda f: (f.parents[2] / "out").write_text("mine"), EXPORT, "cannot write "),
    "export nothing": (lambda f: None, EXPORT.replace("bc,aepo", ","), f"{NAME} has no evaluation of ''"),
    "export seed": (lambda f: None, EXPORT + " --seed 7", f"{NAME} holds seeds [0, 1], not 7"),
    "not evaluated": (put("manifest.json", "{}"), EXPORT, f"{NAME} has no evaluation of bc, aepo"),
    "export damaged": (flip("behavior"), EXPORT, "behavior.safetensors is damaged"),
    "export shape": (edit(lambda t: t.update(w=torch.ones(3))), EXPORT, "w has the shape (3,), not 2 seeds"),
    "policy": (
        edit(lambda t: t.pop("average.log_std"), "policy-iql-b6"),
        STUDY,
        "policy-iql-b6.safetensors does not hold the networks of policy-iql-b6 (Error(s) in loading state_dict",
    ),
    "scale": (put("evaluation/scale-aepo-b3.json", POISON), STUDY, "scale-aepo-b3.json cannot be read"),
    "scale kind": (put("evaluation/scale-aepo-b3.json", "[]"), STUDY, "scale-aepo-b3.json is no file of this study"),
}


@pytest.mark.parametrize(("spoil", "line", "sentence"), LEFT.values(), ids=LEFT)
def test_what_earlier_stages_left(place, finished, capsys, monkeypatch, spoil, line, sentence):
    shutil.copytree(finished, place / "runs")
    spoil(place / NAME)
    check(capsys, monkeypatch, place, line, sentence)


ADVISED = {  # by what is wrong: how it is undone
    "cut": lambda f: (f / "critic.safetensors").unlink(),
    "of others": lambda f: (f / "critic.safetensors").unlink(),
    "one bit": lambda f: (f / "critic.safetensors").unlink(),
    "NaN": lambda f: (f / "behavior.safetensors").unlink(),
    "seeds lost": lambda f: (f / "behavior.safetensors").unlink(),
    "energy": lambda f: (f / "energy-aepo-b3.safetensors").unlink(),
    "manifest": lambda f: (f / "manifest.json").rename(f.parents[2] / "away.json"),
    "manifest kind": lambda f: (f / "manifest.json").rename(f.parents[2] / "away.json"),
}


@pytest.mark.parametrize("wrong", ADVISED)
def test_what_is_advised_ends_the_trouble(place, finished, capsys, monkeypatch, wrong):
    """`delete it and run its stage again`, `move it away and run the notebooks again`."""
    shutil.copytree(finished, place / "runs")
    spoil, line, _ = LEFT[wrong]
    spoil(place / NAME)
    code, _, error = aepo(capsys, monkeypatch, line)
    assert code == 1
    assert error.rstrip().endswith((files.REMEDY, files.REMAKE))
    ADVISED[wrong](place / NAME)
    code, _, error = aepo(capsys, monkeypatch, line)
    assert (code, error) == (0, "")


def test_a_study_without_a_positive_score_is_printed(place, finished, capsys, monkeypatch):
    shutil.copytree(finished, place / "runs")
    code, out, error = aepo(capsys, monkeypatch, RESULTS)
    assert (code, error) == (0, "")
    assert "`aepo-support`" in out


# ---- the machine


def full(monkeypatch):
    """A full disk, as the system tells it: files cannot be put in place."""

    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)


def read_only(monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


def no_memory(monkeypatch):
    monkeypatch.setattr(losses, "behavior_loss", lambda *_: torch.empty(1 << 50))


def no_python_memory(monkeypatch):
    monkeypatch.setattr(losses, "value_loss", lambda *_: bytearray(1 << 60))


def no_number(monkeypatch):
    loss = losses.value_loss

    def diverge(*given):
        value, info = loss(*given)
        return value * torch.tensor([1.0, float("inf")]), info | {
            "value_loss": value * torch.tensor([1.0, float("inf")])
        }

    monkeypatch.setattr(losses, "value_loss", diverge)


MACHINE = {
    "full disk": (full, f"cannot write {{folder}}/{NAME}/manifest.json (No space left on device): free space"),
    "read-only": (read_only, f"cannot write to the run folder {{folder}}/{NAME} (Read-only file system): choose"),
    "memory": (no_memory, "behavior: out of memory ("),
    "Python's memory": (no_python_memory, "critic: out of memory ("),
    "no number": (no_number, "critic: the loss of seed 1 is not finite between steps 0 and 10: try a smaller"),
}


@pytest.mark.parametrize(("spoil", "sentence"), MACHINE.values(), ids=MACHINE)
@pytest.mark.usefixtures("data")
def test_a_machine_that_fails(place, capsys, monkeypatch, spoil, sentence):
    """Nothing half-written stays, and once the machine is well the study is finished."""
    line = STUDY.replace(",".join(METHODS), "bc")
    with monkeypatch.context() as patch:
        spoil(patch)
        code, _, error = aepo(capsys, patch, line)
    assert code == 1
    assert error.startswith("aepo: " + sentence.format(folder=place)), error
    assert error.count("\n") == 1
    left = [path.name for path in (place / "runs").rglob("*") if path.is_file() and ".locks" not in path.parts]
    assert set(left) <= {"manifest.json", "behavior.safetensors", "behavior.json", "behavior.parquet"}
    assert aepo(capsys, monkeypatch, line)[0] == 0
    assert (place / NAME / "returns.csv").exists()
