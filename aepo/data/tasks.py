"""What tasks there are: the table in tasks.yaml, and a user's own task read from a YAML file."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

from aepo import settings as settings_table

MINARI, D4RL, LOCAL = "minari", "d4rl", "local"
PROFILES = ("smoke", "quick", "full")


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
        """The Minari id at a profile."""
        return self.dataset_ids[profile]


def _task(name: str, suite: str, row: Mapping[str, Any]) -> Task:
    """A task from its row in tasks.yaml, which says what the keys are."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    stem, searched = f"aepo/{name.replace('-', '/', 1)}", fields.pop("searched", {})
    ids = dict.fromkeys(PROFILES, fields.pop("dataset", stem))
    if fields["source"] == LOCAL:  # ids of our own: never official ones
        ids = {"smoke": f"{stem}-smoke-v0", "quick": f"{stem}-v0", "full": f"{stem}-full-v0"}
    return Task(name, suite, dataset_ids=ids, **fields | {"settings": fields["settings"] | searched})


TABLE = yaml.load(
    Path(__file__).with_name("tasks.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
)  # the first, in C, is ten times faster
SUITES: dict[str, dict[str, Any]] = TABLE["tasks"]
TASKS = {name: _task(name, suite, row) for suite, rows in SUITES.items() for name, row in rows.items()}
GROUPS, DENSE, SEARCHED_ON = TABLE["groups"], TABLE["settings"]["dense"], TABLE["searched_on"]


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
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}: choose one of {', '.join([*SUITES, *GROUPS])}")
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


# ---- a user's own task

SHARES = ("discount", "expectile", "ema_rate", "target_rate", "hindsight")  # between 0 and 1
POSITIVE = ("beta", "learning_rate", "reward_scale", "temperature", "goal_radius", "weight_cap")
STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _allowed(name: str, default: Any) -> Any:
    """The type of a setting, as pydantic takes it: that of its default, with the limits that its name sets."""
    if isinstance(default, bool):
        return bool
    if isinstance(default, int):
        return Annotated[int, Field(ge=0 if name == "seed" else 1)]
    if isinstance(default, Mapping):
        return dict[Literal[tuple(default)], _allowed(name, 0.0)]
    if isinstance(default, tuple):
        return list[_allowed(name, 0.0)]
    limits = Field(gt=0) if name in POSITIVE else Field(ge=0, le=1 if name in SHARES else None)
    if name == "reward_scale":
        return Annotated[float, limits] | None
    return Annotated[float, limits]


def _settings_model(name: str, defaults: Any) -> type[pydantic.BaseModel]:
    """What a file may change of a settings dataclass, or of the stages of a profile."""
    stages = {key: value for key, value in vars(defaults).items() if is_dataclass(value)}
    types = {key: _settings_model(key, value) for key, value in stages.items()}
    types = types or {key: _allowed(key, value) for key, value in vars(defaults).items()}
    return pydantic.create_model(name, __config__=STRICT, **{key: (kind, None) for key, kind in types.items()})


SETTINGS = _settings_model("settings", settings_table.QUICK)


class TaskFile(pydantic.BaseModel):
    """What the YAML file of a user's own task may hold."""

    model_config = STRICT

    name: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # it names a folder
    dataset: str
    env_id: str | None
    horizon: Annotated[int, Field(ge=1)]
    env_kwargs: dict[str, Any] = {}
    observation_keys: list[str] = []
    references: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    settings: SETTINGS = SETTINGS()


def _read(path: Path) -> Task:
    """A user's own task from its YAML file; ValueError with one sentence where it is none."""
    try:
        return _own_task(yaml.safe_load(path.read_text()), path)
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    except yaml.YAMLError as error:
        problem = f"is not YAML ({' '.join(str(error).split())})"
    except pydantic.ValidationError as error:
        problem = _sentence(error)
    except ValueError as error:
        problem = str(error)
    raise ValueError(f"task file {path}: {problem}")


def _own_task(content: Any, path: Path) -> Task:
    if not isinstance(content, dict):
        raise ValueError(f"must hold keys and values: {', '.join(TaskFile.model_fields)}")
    given = TaskFile.model_validate({"name": path.stem} | content)
    if given.name in {*TASKS, "theory", "study"}:
        raise ValueError(f"the name {given.name!r} is taken: give it another `name:`")
    if given.references and given.references[0] >= given.references[1]:
        raise ValueError(f"references must be two numbers, low before high, got {given.references}")
    changed = given.settings.model_dump(exclude_unset=True)
    return Task(
        name=given.name,
        suite="own",
        **_source(given.dataset, given.name, path),
        env_id=given.env_id,
        env_kwargs=given.env_kwargs,
        observation_keys=tuple(given.observation_keys),
        horizon=given.horizon,
        references=tuple(given.references) if given.references else None,
        scores=f"given in {path.name}" if given.references else "those stored with the dataset, else returns only",
        settings={stage: DENSE.get(stage, {}) | changed.get(stage, {}) for stage in {**DENSE, **changed}},
        definition=str(path.resolve()),
    )


def _sentence(error: pydantic.ValidationError) -> str:
    """The first of the errors: key, what is wanted, and value; the keys that there are where one is unknown."""
    first = error.errors()[0]
    *above, key = [str(part) for part in first["loc"] if part != "[key]"]
    if first["type"] not in ("missing", "extra_forbidden"):
        return f"{': '.join([*above, key])}: {first['msg'].replace('Input', 'it', 1)}, got {first['input']!r}"
    model = TaskFile
    for part in above:
        model = model.model_fields[part].annotation
    where = f" in {': '.join(above)}" if above else ""
    kind = "missing" if first["type"] == "missing" else "unknown"
    return f"{kind} key {key!r}{where}; keys: {', '.join(model.model_fields)}"


def _source(dataset: str, name: str, path: Path) -> dict[str, Any]:
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
