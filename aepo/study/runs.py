"""Where a run's files lie, the manifest of what made them, and one seed of them as a folder of its own."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from aepo import files
from aepo import settings as settings_table
from aepo.core.networks import select_seeds
from aepo.data import tasks
from aepo.data.datasets import Dataset
from aepo.files import REMAKE, StudyError, lock, project_root, read_json, write_json
from aepo.methods import METHODS

SECTIONS = ("stages", "evaluation", "data")  # of the manifest


@dataclass(frozen=True)
class Run:
    """The folder runs/<profile>/<task> and the parameters of a notebook."""

    folder: Path
    task: tasks.Task
    profile_name: str
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    device: str

    @property
    def profile(self) -> settings_table.Profile:
        """The settings of this run: the profile's, and what differs for its task."""
        return settings_table.for_task(self.profile_name, self.task.settings)

    @property
    def figures(self) -> Path:
        """Folder of this run's figures, beside the runs folder: figures/<profile>/<task>."""
        return self.folder.parents[1].parent / "figures" / self.profile_name / self.task.name

    def artifact(self, stage: str) -> Path:
        """Path of a stage's networks."""
        return self.folder / f"{stage}.safetensors"

    def metrics(self, stage: str) -> Path:
        """Path of a stage's training log."""
        return self.folder / "metrics" / f"{stage}.parquet"


def energy_stage(method: str, beta: float) -> str:
    """Name of the stage of a method's energy network at inverse temperature beta: energy-<method>-b<beta>."""
    return f"energy-{method}-b{beta:g}"


def policy_stage(method: str, beta: float) -> str:
    """Name of the stage that trains a method's own policy: policy-<method>, with -b<beta> where it has one."""
    entry = METHODS[method]
    shared = entry.policy == "resampled"  # by several methods
    return f"policy-{entry.policy if shared else method}" + (f"-b{beta:g}" if entry.tempered else "")


def stages_of(method: str, beta: float) -> dict[str, str]:
    """The stages whose networks a method acts with, by their part: behavior (what makes actions), critic, energy."""
    entry = METHODS[method]
    parts = {"behavior": policy_stage(method, beta) if entry.policy else "behavior"}
    if entry.best or entry.shift:
        parts["critic"] = parts["behavior"] if entry.policy == "diffusion-q" else "critic"
    return parts | ({"energy": energy_stage(method, beta)} if entry.energy else {})


def open_run(
    task: str, seeds: Sequence[int], methods: Sequence[str], profile: str, device: str, runs_dir: str | Path
) -> Run:
    """Check a notebook's parameters and make its run folder; StudyError says in one sentence what is wrong."""
    with files.sentence():
        found, _ = tasks.get(task), settings_table.get(profile)
    if not seeds or len({*seeds}) < len(seeds) or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise StudyError(f"seeds must be distinct integers >= 0, at least one, got {list(seeds)}")
    unknown = [repr(method) for method in methods if method not in METHODS]
    if unknown or not methods or len({*methods}) < len(methods):
        problem = f"unknown method {', '.join(unknown)}" if unknown else "methods must be distinct, at least one"
        raise StudyError(f"{problem}: choose from {', '.join(METHODS)}, got {', '.join(map(str, methods)) or 'none'}")
    device, folder = choose_device(device), resolve(runs_dir) / profile / found.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        problem = f"cannot write to the run folder {folder} ({error.strerror})"
        raise StudyError(f"{problem}: choose another runs_dir") from None
    return Run(folder, found, profile, tuple(seeds), tuple(methods), device)


def resolve(runs_dir: str | Path) -> Path:
    """The runs folder: as given where absolute, else below the project."""
    given = os.path.expanduser(runs_dir)
    if given.startswith("~"):
        raise StudyError(
            f"there is no home folder {Path(given).parts[0]}: give the path of another folder than {given}"
        )
    return project_root() / given


def results_path(runs_dir: Path, profile: str) -> Path:
    """The study's results.csv in the runs folder; the smoke profile, which is no result, has its own below runs/smoke."""
    return (runs_dir / "smoke" if profile == "smoke" else runs_dir) / "results.csv"


def find_folder(folder: str | Path) -> Path:
    """A run folder as given, or relative to the project where it is not below the working directory."""
    given = Path(os.path.expanduser(folder))
    for found in (given, resolve(given)):
        if found.is_dir():
            return found
    raise StudyError(f"there is no run folder {given}: give the path of a runs/<profile>/<task> folder")


def choose_device(device: str) -> str:
    """`auto` is the GPU where there is one; a GPU that is asked for but missing is a StudyError."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise StudyError(f"unknown device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise StudyError("device 'cuda' was asked for but torch sees no GPU: use device=cpu or auto")
    return device


def read_metrics(run: Run, stage: str) -> pd.DataFrame:
    """The training log of a finished stage; StudyError where it is missing or something else."""
    path = run.metrics(stage)
    try:
        frame = pd.read_parquet(path)
        if not {"seed", "step"} <= {*frame}:
            raise ValueError("no training log")
    except (OSError, ValueError, KeyError) as error:
        remedy = f"delete {run.artifact(stage).name} and run its stage again"
        raise StudyError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}): {remedy}") from None
    return frame


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a run folder, empty where there is none; StudyError where it is something else."""
    path = folder / "manifest.json"
    manifest = read_json(path)
    if any(not isinstance(manifest.get(name, {}), dict) for name in SECTIONS):
        raise StudyError(f"{path} is no file of this study: {REMAKE}")
    return manifest


def update_manifest(folder: Path, section: str, name: str, entry: Mapping[str, Any]) -> None:
    """Set one entry of a section of the manifest, with the versions and commit it was made with, under its lock."""
    made_with = {"versions": files.versions(), "git_commit": files.git_commit(project_root())}
    with lock(folder, "manifest"):
        manifest = read_manifest(folder) | made_with
        manifest.setdefault(section, {})[name] = dict(entry) | made_with
        write_json(folder / "manifest.json", manifest)


def record_data(folder: Path, data: Dataset) -> None:
    """Write what the data are into the manifest of a run folder."""
    entry = {
        "content_hash": data.content_hash,
        "transitions": len(data),
        "episodes": int(data.episode.max()) + 1,
        "reference_scores": None if data.reference_scores is None else list(data.reference_scores),
    }
    update_manifest(folder, "data", data.dataset_id, entry)


def figure_path(run: Run, notebook: str, name: str, method: str | None = None) -> Path:
    """Where a notebook's figure is written; a notebook that is run once a method gives the method."""
    return run.figures / f"{notebook[:2]}_{name}{f'-{method}' if method else ''}.png"


def export(folder: Path, target: Path, seed: int, methods: Sequence[str]) -> int:
    """Copy one seed of what some methods act with to `target`, the manifest with it; returns the bytes written."""
    if Path(target).resolve() == Path(folder).resolve():
        raise StudyError(f"{target} is the run itself: export into another folder")
    manifest = read_manifest(folder)
    evaluated = {name: entry for name, entry in manifest.get("evaluation", {}).items() if name in methods}
    if lacking := [name for name in methods or ["''"] if name not in evaluated]:
        raise StudyError(f"{folder} has no evaluation of {', '.join(lacking)}: run `make reproduce METHODS=...` first")
    used = {stage for name, entry in evaluated.items() for stage in stages_of(name, entry["beta"]).values()}
    for stage in sorted(used):
        path = folder / f"{stage}.safetensors"
        tensors, meta = files.load_networks(path)
        if seed not in (seeds := meta["seeds"]):
            raise StudyError(f"{folder} holds seeds {seeds}, not {seed}")
        acting = {key: t for key, t in tensors.items() if not key.startswith(("q_target.", "policy."))}
        chosen = {key: select_seeds(t, [seeds.index(seed)], len(seeds)) for key, t in acting.items()}
        meta = {key: value for key, value in meta.items() if key not in ("format", "sha256")} | {"seeds": [seed]}
        files.write_artifact(target / f"{stage}.safetensors", chosen, meta)
    kept = {name: entry | {"seeds": [seed]} for name, entry in manifest["stages"].items() if name in used}
    write_json(target / "manifest.json", manifest | {"stages": kept, "evaluation": evaluated})
    return sum(path.stat().st_size for path in target.iterdir())
