"""What tasks there are: the table in tasks.yaml, and a user's own task read from a YAML file."""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import pydantic
import yaml
from pydantic import Field

from aepo import settings as settings_table
from aepo.core.guidance import KINDS

MINARI, D4RL, LOCAL = "minari", "d4rl", "local"
PROFILES = ("smoke", "quick", "study", "full")


@dataclass(frozen=True)
class Task:
    """One offline RL task: where its data come from, the environment that evaluates it, and what its scores mean."""

    name: str
    suite: str
    source: str  # MINARI (downloaded), D4RL (an HDF5 file, imported) or LOCAL (collected by `recipe`)
    dataset_ids: Mapping[str, str]  # Minari id a profile
    env_id: str | None  # None: train-only, no environment of today fits the data
    horizon: int  # steps of an evaluation episode
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)  # when evaluating; the data's may differ, see `note`
    observation_keys: tuple[str, ...] = ()  # parts of a dict observation, flattened in this order; empty: plain arrays
    zeros: int = 0  # numbers that the data have more than the environment, at the end of an observation and always 0
    dimensions: tuple[int, int] | None = None  # numbers in a flattened observation and in an action; None: the data's
    continuing: bool = False  # the recorded episodes are segments of one long walk
    recipe: str | None = None  # one of `collect.RECIPES`
    tier: str | None = None  # which trained actors play
    references: tuple[float, float] | None = None  # returns of score 0 and 100; None: those stored with the data
    scores: str = "0 and 100: the worst and best 5% of recorded episodes"  # where they come from
    recorded_return: str = "sum"  # of a recorded episode's rewards, or "max" where they count what is achieved so far
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what differs from the profile, by stage
    file: str | None = None  # the user's HDF5 file
    definition: str | None = None  # the YAML file that a user's own task was read from
    note: str = ""  # what readers must know

    @property
    def argument(self) -> str:
        """What `get` and `make reproduce TASK=` take for this task: its name, or the path of its YAML file."""
        return self.definition or self.name


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _task(name: str, suite: str, row: Mapping[str, Any]) -> Task:
    """A task from its row in tasks.yaml, which says what the keys are."""
    fields = _tuples(row)
    stem, searched = f"aepo/{name.replace('-', '/', 1)}", fields.pop("searched", {})
    ids = dict.fromkeys(PROFILES, fields.pop("dataset", stem))
    if fields["source"] == LOCAL:  # ids of our own: never official ones
        sizes = {"smoke": "-smoke", "quick": "", "study": "", "full": "-full"}
        ids = {profile: f"{stem}{size}-v0" for profile, size in sizes.items()}
    return Task(name, suite, dataset_ids=ids, **fields | {"settings": fields["settings"] | searched})


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first, in C, is ten times faster
TABLE = yaml.load(Path(__file__).with_name("tasks.yaml").read_text(), LOADER)
SUITES: dict[str, dict[str, Any]] = TABLE["tasks"]
TASKS = {name: _task(name, suite, row) for suite, rows in SUITES.items() for name, row in rows.items()}
GROUPS, DENSE, SEARCHED_ON = TABLE["groups"], TABLE["settings"]["dense"], TABLE["searched_on"]


def get(name: str) -> Task:
    """The task of that name or in that YAML file; ValueError says in one sentence what is wrong."""
    name = str(name)
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return _read(Path(os.path.expanduser(name)))
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=5, cutoff=0)
        those = f"choose one of {', '.join(near)}, ... (`aepo tasks` lists all {len(TASKS)})"
        raise ValueError(f"unknown task {name!r}: {those}, or give the path of a YAML file that describes your own")
    return TASKS[name]


def suite(name: str) -> list[Task]:
    """The tasks of a suite, or of a group such as local-small; ValueError lists those there are."""
    known = {**SUITES, **GROUPS}
    if name not in known:
        raise ValueError(f"unknown suite {name!r}: choose one of {', '.join(known)}")
    return [TASKS[task] for task in known[name]]


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

LIMITS = yaml.load(Path(__file__).with_name("limits.yaml").read_text(), LOADER)
LIMITS["form"] = [*KINDS, *LIMITS["form"]]
HUGE = 10**9
STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _allowed(name: str, default: Any) -> Any:
    """The type of a setting, as pydantic takes it: that of its default, with the limits of its name."""
    limits, whole = LIMITS.get(name, {}), isinstance(default, int)
    if is_dataclass(default):
        return _model(name, vars(default))
    if isinstance(default, bool):
        return bool
    if isinstance(default, Mapping):
        return dict[Literal[tuple(default)], _allowed(name, 0.0)]  # type: ignore[misc]
    if isinstance(default, tuple):
        return Annotated[list[_allowed(name, 0.0)], Field(min_length=1)]  # type: ignore[misc]
    if isinstance(limits, list):
        kind = bool if limits == [False, True] else Literal[tuple(limits)]
    else:
        kind = Annotated[int if whole else float, Field(**{"ge": int(whole), "le": HUGE} | limits)]
    return kind | None if default is None else kind


def _model(name: str, defaults: Mapping[str, Any]) -> type[pydantic.BaseModel]:
    """What a file may change of these settings."""
    types: dict[str, Any] = {key: (_allowed(key, value), None) for key, value in defaults.items()}
    return pydantic.create_model(name, __config__=STRICT, **types)


SETTINGS = _model("settings", {stage: of for stage, of in vars(settings_table.QUICK).items() if is_dataclass(of)})


class Plain(yaml.SafeLoader):
    """YAML with numbers as people mean them, 0200 for 200 and 1e-3 for a thousandth, text for dates, and no key twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, rule) for tag, rule in rules if tag.rpartition(":")[2] in ("bool", "null", "merge")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"the key {twice[0]!r} stands twice: leave one")
        return super().construct_mapping(node, deep)


_DIGITS, _FLOAT = "[-+]?[0-9][0-9_]{0,30}", r"([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF)"
for _tag, _rule in (("int", _DIGITS), ("float", rf"[-+]?({_FLOAT})|\.(nan|NaN|NAN)")):
    Plain.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"({_rule})$"), list("-+.0123456789"))
Plain.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value.replace("_", "")))
ARGUMENTS = pydantic.RootModel[dict[str, pydantic.JsonValue]]
TAKEN = {"id", "env_id", "max_episode_steps", "disable_env_checker"}  # by what makes an environment


class TaskFile(pydantic.BaseModel):
    """What the YAML file of a user's own task may hold."""

    model_config = STRICT

    name: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]  # it names a folder
    dataset: str
    env_id: Annotated[str, Field(min_length=1)] | None
    horizon: Annotated[int, Field(ge=1, le=10**6)]
    env_kwargs: ARGUMENTS = ARGUMENTS({})
    observation_keys: list[str] = []
    references: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    settings: SETTINGS = SETTINGS()  # type: ignore[valid-type]


def in_order(low: float, high: float) -> bool:
    """Whether returns of score 0 and 100 are numbers, not enormous, the one clearly before the other."""
    return max(abs(low), abs(high)) <= 1e12 and high - low >= 1e-6 * max(abs(low), abs(high), 1e-6)


def _read(path: Path) -> Task:
    """A user's own task from its YAML file; ValueError with one sentence where it is none."""
    try:
        content = yaml.load(path.read_text("utf-8"), Plain)
        if not isinstance(content, dict):
            raise ValueError(f"must hold keys and values: {', '.join(TaskFile.model_fields)}")
        given = TaskFile.model_validate({"name": path.stem} | content)
        if given.name in {*TASKS, "theory", "study"}:
            raise ValueError(f"the name {given.name!r} is taken: give it another `name:`")
        if given.references and not in_order(*given.references):
            raise ValueError(f"references must be two numbers, low before high, got {given.references}")
        if taken := TAKEN & {*given.env_kwargs.root}:
            raise ValueError(f"env_kwargs: {min(taken)} is set by the study, from env_id and horizon: leave it out")
        origin = _source(given.dataset, given.name, path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"task file {path}: {_sentence(error)}") from None
    changed = given.settings.model_dump(exclude_unset=True)  # type: ignore[attr-defined]
    return Task(
        suite="own",
        **_tuples(given.model_dump(exclude={"dataset", "settings"})),
        **origin,
        scores=f"given in {path.name}"
        if given.references
        else "those stored with the dataset, else the worst and best 5% of its episodes",
        settings={stage: DENSE.get(stage, {}) | changed.get(stage, {}) for stage in {**DENSE, **changed}},
        definition=str(path.resolve()),
    )


def _sentence(error: Exception) -> str:
    """What is wrong with a file: an unknown key, else the first value, with its key and what is wanted, or the keys."""
    if isinstance(error, yaml.YAMLError):
        return f"is not YAML ({' '.join(str(error).split())})"
    if isinstance(error, (OSError, UnicodeDecodeError, RecursionError)):
        kind = "nested too deeply" if isinstance(error, RecursionError) else "not UTF-8 text"
        return f"cannot be read ({getattr(error, 'strerror', None) or f'it is {kind}'})"
    if not isinstance(error, pydantic.ValidationError):
        return str(error)
    first, model = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden"), cast(Any, TaskFile)
    *above, key = [str(part) for part in first["loc"] if part != "[key]"]
    if first["type"] not in ("missing", "extra_forbidden"):
        return f"{': '.join([*above, key])}: {first['msg'].replace('Input', 'it', 1)}, got {first['input']!r:.100}"
    for part in above:
        model = model.model_fields[part].annotation
    where = f" in {': '.join(above)}" if above else ""
    kind = "missing" if first["type"] == "missing" else "unknown"
    return f"{kind} key {key!r}{where}; keys: {', '.join(model.model_fields)}"


def _source(dataset: str, name: str, path: Path) -> dict[str, Any]:
    """Where an own task's data are: an HDF5 file (relative to the YAML file) or a Minari id."""
    if dataset.lower().endswith((".hdf5", ".h5")):
        file = (path.resolve().parent / os.path.expanduser(dataset)).resolve()
        if not file.is_file():
            raise ValueError(f"there is no dataset file {file}")
        state = file.stat()  # another file under the same name is another dataset
        digest = settings_table.digest([str(file), state.st_size, state.st_mtime_ns])[:8]
        ids = dict.fromkeys(PROFILES, f"aepo/own/{name}-{digest}-v0")
        return {"source": D4RL, "dataset_ids": ids, "file": str(file)}
    if not re.fullmatch(r"[\w-]+(/[\w-]+)*-v\d+", dataset):
        raise ValueError(f"dataset must be a Minari id (namespace/name-v0) or an .hdf5 file, got {dataset!r}")
    return {"source": MINARI, "dataset_ids": dict.fromkeys(PROFILES, dataset)}
