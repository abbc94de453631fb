"""What tasks there are: the table of `aepo.suites`, and a user's own task read from a YAML file."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from aepo import settings as settings_table
from aepo.data import suites
from aepo.data.suites import D4RL, LOCAL, MINARI, PROFILES

__all__ = ["D4RL", "LOCAL", "MINARI", "TASKS", "Task", "choose", "get", "suite"]


@dataclass(frozen=True)
class Task:
    """One offline RL task: where its data come from, the environment that evaluates it, and what its scores mean.

    `source`: MINARI (downloaded), D4RL (an HDF5 file, imported) or LOCAL (collected by `recipe`, with `tier` where it
    has several). `dataset_ids`: Minari id a profile. `env_id` None: train-only, no environment of today fits the data.
    `env_kwargs`: arguments of the environment that evaluates; the data's may differ (`note` says how).
    `observation_keys`: the parts of a dict observation, flattened in this order; empty for plain arrays.
    `zeros`: numbers that the data have more than the environment, at the end of an observation and always 0.
    `dimensions`: numbers in a flattened observation and in an action; None: those of the data.
    `horizon`: steps of an evaluation episode. `continuing`: the recorded episodes are segments of one long walk.
    `references`: returns of score 0 and 100; None: those stored with the dataset, or none. `scores`: their origin.
    `recorded_return`: how a recorded episode's rewards become its return: their "sum", or their "max" where they count
    what is achieved so far. `settings`: what differs from the profile, by stage: {"critic": {"discount": 0.99}}.
    `file`: the user's HDF5 file. `definition`: the YAML file a user's own task was read from.
    `note`: what readers must know.
    """

    name: str
    suite: str
    source: str
    dataset_ids: Mapping[str, str]
    env_id: str | None
    horizon: int
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    observation_keys: tuple[str, ...] = ()
    zeros: int = 0
    dimensions: tuple[int, int] | None = None
    continuing: bool = False
    recipe: str | None = None
    tier: str | None = None
    references: tuple[float, float] | None = None
    scores: str = "no reference scores: returns only"
    recorded_return: str = "sum"
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    file: str | None = None
    definition: str | None = None
    note: str = ""

    @property
    def argument(self) -> str:
        """What `get` and `make reproduce TASK=` take for this task: its name, or the path of its YAML file."""
        return self.definition or self.name

    def dataset_id(self, profile: str) -> str:
        """The Minari id at a profile; one with other networks (quick-qgpo) has the data of the profile it varies."""
        return self.dataset_ids[profile.partition("-")[0]]


TASKS = {row["name"]: Task(**row) for row in suites.rows()}
GROUPS = {"local-small": suites.LOCAL_SMALL}


def get(name: str) -> Task:
    """The task of that name or in that YAML file; ValueError says in one sentence what is wrong."""
    name = str(name)
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return _read(Path(name).expanduser())
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=5, cutoff=0)
        raise ValueError(
            f"unknown task {name!r}: choose one of {', '.join(near)}, ... (`aepo tasks` lists all {len(TASKS)}), "
            "or give the path of a YAML file that describes your own"
        )
    return TASKS[name]


def suite(name: str) -> list[Task]:
    """The tasks of a suite, or of a group such as local-small; ValueError lists those there are."""
    if name in GROUPS:
        return [TASKS[task] for task in GROUPS[name]]
    if name not in suites.SUITES:
        raise ValueError(f"unknown suite {name!r}: choose one of {', '.join([*suites.SUITES, *GROUPS])}")
    return [task for task in TASKS.values() if task.suite == name]


def choose(names: str = "", suite_name: str = "") -> list[Task]:
    """The tasks of a suite, or of comma-separated names and YAML files, each once; maze2d-umaze where both are empty."""
    if suite_name:
        return suite(suite_name)
    found: dict[str, Task] = {}
    for name in filter(None, (part.strip() for part in (names or "maze2d-umaze").split(","))):
        task = get(name)
        if found.setdefault(task.name, task).argument != task.argument:
            raise ValueError(f"two of the tasks have the name {task.name!r}: give one another `name:` in its YAML file")
    if not found:
        raise ValueError(f"no task is named in {names!r}: `aepo tasks` lists them")
    return list(found.values())


KEYS = {
    "name": (str,),
    "dataset": (str,),
    "env_id": (str, type(None)),
    "env_kwargs": (dict, type(None)),
    "observation_keys": (list, type(None)),
    "horizon": (int,),
    "references": (list, type(None)),
    "settings": (dict, type(None)),
}
REQUIRED = ("dataset", "env_id", "horizon")
KINDS = {str: "text", dict: "a mapping", list: "a list", int: "a whole number", type(None): "empty"}


def _read(path: Path) -> Task:
    """A user's own task from its YAML file."""

    def refuse(what: str) -> ValueError:
        return ValueError(f"task file {path}: {what}")

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except yaml.YAMLError as error:
        raise refuse(f"is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise refuse(f"must hold keys and values: {', '.join(KEYS)}")
    for wrong in ([key for key in content if key not in KEYS], [key for key in REQUIRED if key not in content]):
        if wrong:
            kind = "unknown" if wrong[0] in content else "missing"
            raise refuse(f"{kind} key {', '.join(map(repr, wrong))}; keys: {', '.join(KEYS)}")
    for key, value in content.items():
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            raise refuse(f"{key} must be {' or '.join(KINDS[kind] for kind in KEYS[key])}, got {value!r}")
    name = content.get("name", path.stem)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise refuse(f"the name {name!r} must be letters, digits, - and _ (it names a folder)")
    if name in {*TASKS, "theory", "study"}:
        raise refuse(f"the name {name!r} is taken: give it another `name:`")
    if content["horizon"] < 1:
        raise refuse(f"horizon must be a number of steps >= 1, got {content['horizon']}")
    keys = content.get("observation_keys") or []
    if not all(isinstance(key, str) for key in keys):
        raise refuse(f"observation_keys must be a list of names, got {keys!r}")
    references = content.get("references")
    if references is not None and not _is_range(references):
        raise refuse(f"references must be two numbers, low before high (or left out), got {references!r}")
    try:
        return Task(
            name=name,
            suite="own",
            **_data(content["dataset"], name, path),
            env_id=content["env_id"],
            env_kwargs=content.get("env_kwargs") or {},
            observation_keys=tuple(keys),
            horizon=content["horizon"],
            references=tuple(map(float, references)) if references else None,
            scores=f"given in {path.name}" if references else "those stored with the dataset, else returns only",
            settings=_settings(content.get("settings") or {}),
            definition=str(path.resolve()),
        )
    except ValueError as error:
        raise refuse(str(error)) from None


def _is_range(values: list[Any]) -> bool:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(values) == len(numbers) == 2 and numbers[0] < numbers[1]


def _data(dataset: str, name: str, path: Path) -> dict[str, Any]:
    """Where an own task's data are: an HDF5 file (relative to the YAML file) or a Minari id."""
    if dataset.endswith((".hdf5", ".h5")):
        file = (path.resolve().parent / Path(dataset).expanduser()).resolve()
        if not file.is_file():
            raise ValueError(f"there is no dataset file {file}")
        state = file.stat()  # another file under the same name is another dataset
        digest = hashlib.sha256(f"{file}:{state.st_size}:{state.st_mtime_ns}".encode()).hexdigest()[:8]
        return {
            "source": D4RL,
            "dataset_ids": dict.fromkeys(PROFILES, f"aepo/own/{name}-{digest}-v0"),
            "file": str(file),
        }
    if not re.fullmatch(r"[\w-]+(/[\w-]+)*-v\d+", dataset):
        raise ValueError(f"dataset must be a Minari id (namespace/name-v0) or an .hdf5 file, got {dataset!r}")
    return {"source": MINARI, "dataset_ids": dict.fromkeys(PROFILES, dataset)}


def _settings(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by stage, checked for names and types; they start from what dense rewards need."""
    profile = settings_table.QUICK
    stages = [f.name for f in fields(profile) if hasattr(getattr(profile, f.name), "__dataclass_fields__")]
    for stage, values in given.items():
        if stage not in stages or not isinstance(values, dict):
            raise ValueError(f"settings must be values by stage ({', '.join(stages)}), got {stage}: {values!r}")
        known = getattr(profile, stage)
        for key, value in values.items():
            if key not in known.__dataclass_fields__:
                raise ValueError(f"unknown setting {stage}: {key}; there are {', '.join(known.__dataclass_fields__)}")
            before = getattr(known, key)
            if not _fits(value, before) and not (value is None and key == "reward_scale"):
                like = dict(before) if isinstance(before, Mapping) else before
                raise ValueError(f"setting {stage}: {key} must be like {like!r}, got {value!r}")
            if not _possible(key, value, before):
                raise ValueError(f"setting {stage}: {key} cannot be {value!r}")
    return {stage: suites.DENSE.get(stage, {}) | given.get(stage, {}) for stage in {**suites.DENSE, **given}}


def _fits(value: Any, before: Any) -> bool:
    """Whether a value has the kind of the one that it replaces: true or false, numbers, lists of them, or by method."""
    if isinstance(before, bool):
        return isinstance(value, bool)
    if isinstance(before, Mapping):
        return isinstance(value, dict) and all(key in before and _fits(v, 0.0) for key, v in value.items())
    if isinstance(before, tuple):
        return isinstance(value, list) and all(_fits(v, 0.0) for v in value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (isinstance(value, float) and not isinstance(before, int))


SHARES = ("discount", "expectile", "ema_rate", "target_rate", "hindsight")  # between 0 and 1
POSITIVE = ("beta", "learning_rate", "reward_scale", "temperature", "goal_radius", "weight_cap")


def _possible(key: str, value: Any, before: Any) -> bool:
    """Whether a value that fits can be: finite, counts from 1, shares within [0, 1], nothing below 0."""
    if isinstance(value, dict | list):
        return all(_possible(key, v, 0.0) for v in (value.values() if isinstance(value, dict) else value))
    if value is None or isinstance(value, bool):
        return True
    least = 1 if isinstance(before, int) and key != "seed" else 0
    below = value <= 0 if key in POSITIVE else value < least
    return math.isfinite(value) and not below and not (key in SHARES and value > 1)
