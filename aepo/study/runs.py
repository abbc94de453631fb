"""Where a run's files lie, and the manifest of what made them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from aepo import files
from aepo import methods as methods_table
from aepo import settings as settings_table
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

    def checkpoints(self) -> Path:
        """Folder of unfinished trainings."""
        return self.folder / "checkpoints"


def energy_stage(method: str, beta: float) -> str:
    """Name of the stage of a method's energy network at inverse temperature beta: energy-<method>-b<beta>."""
    return f"energy-{METHODS[method].shares or method}-b{beta:g}"


def policy_stage(method: str, beta: float) -> str:
    """Name of the stage that trains a method's own policy: policy-<method>, with -b<beta> where it has one."""
    return f"policy-{method}" + (f"-b{beta:g}" if METHODS[method].tempered else "")


def stages_of(method: str, beta: float) -> dict[str, str]:
    """The stages whose networks a method acts with, by their part: behavior (what makes actions), critic, energy."""
    entry = METHODS[method]
    parts = {"behavior": policy_stage(method, beta) if entry.policy else "behavior"}
    if entry.best or entry.closed:
        parts["critic"] = parts["behavior"] if entry.policy == "diffusion-q" else "critic"
    return parts | ({"energy": energy_stage(method, beta)} if entry.energy else {})


def open_run(
    task: str,
    seeds: Sequence[int],
    methods: Sequence[str],
    profile: str,
    device: str,
    runs_dir: str | Path,
) -> Run:
    """Check a notebook's parameters and make its run folder; StudyError says in one sentence what is wrong."""
    try:
        found, _ = tasks.get(task), settings_table.get(profile)
    except ValueError as error:
        raise StudyError(str(error)) from None
    bad = [s for s in seeds if not isinstance(s, int) or isinstance(s, bool) or s < 0]
    if bad or not seeds or len(set(seeds)) != len(seeds):
        raise StudyError(f"seeds must be distinct integers >= 0, at least one, got {list(seeds)}")
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods or len(set(methods)) != len(methods):
        problem = (
            f"unknown method {', '.join(map(repr, unknown))}" if unknown else "methods must be distinct, at least one"
        )
        raise StudyError(f"{problem}: choose from {', '.join(METHODS)}, got {', '.join(map(str, methods)) or 'none'}")
    device = choose_device(device)
    folder = resolve(runs_dir) / profile / found.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StudyError(
            f"cannot write to the run folder {folder} ({error.strerror}): choose another runs_dir"
        ) from None
    return Run(folder, found, profile, tuple(seeds), tuple(methods), device)


def resolve(runs_dir: str | Path) -> Path:
    """The runs folder: as given where absolute, else below the project."""
    given = Path(runs_dir).expanduser()
    return given if given.is_absolute() else project_root() / given


def find_folder(folder: str | Path) -> Path:
    """A run folder as given, or relative to the project where it is not below the working directory."""
    given = Path(folder).expanduser()
    found = next((p for p in (given, project_root() / given) if p.is_dir()), None)
    if found is None:
        raise StudyError(f"there is no run folder {given}: give the path of a runs/<profile>/<task> folder")
    return found


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
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise StudyError(
            f"{path} cannot be read ({reason[:200]}): delete {run.artifact(stage).name} and run its stage again"
        ) from None
    if "seed" not in frame or "step" not in frame:
        raise StudyError(f"{path} is no training log: delete {run.artifact(stage).name} and run its stage again")
    return frame


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a run folder, empty where there is none; StudyError where it is something else."""
    path = folder / "manifest.json"
    manifest = read_json(path)
    if not all(isinstance(manifest.get(name, {}), dict) for name in SECTIONS):
        raise StudyError(f"{path} is no file of this study: {REMAKE}")
    return manifest


def update_manifest(folder: Path, section: str, name: str, entry: Mapping[str, Any]) -> None:
    """Set one entry of a section (`stages`, `evaluation`, `data`) of the manifest, under its lock.

    The entry gets the versions and the commit it was made with; at the top stand those of the latest entry.
    """
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


FIGURES = {
    "03_dataset": ("maze_map", "actions", "ranges", "rewards"),
    "04_behavior": ("behavior_loss", "behavior_actions", "posterior_variance"),
    "05_critic": ("critic_losses", "value_map"),
    "06_energy": ("energy_loss", "curvature", "guidance_field", "guidance_curve"),
    "06_policy": ("policy_loss", "policy_actions"),
    "07_evaluation": ("trajectories",),
    "08_results": ("scores", "guidance_curves"),
    "09_guidance_on_real_tasks": ("guidance",),
}
OF_ROLLOUTS = ("guidance_curve", "guidance_curves", "trajectories")  # figures that a train-only task does not have
THEORY_FIGURES = {
    "01_closed_form_guidance": (
        "fields",
        "posterior_variance",
        "orders",
        "sign_reversal",
        "cubature",
        "support",
        "errors",
    ),
    "02_exact_toys": ("densities", "samples", "known", "guidance_error", "solver"),
}
ABLATION_FIGURES = {"11_ablations": ("factor", "own", "grid", "expectile", "floor", "solver", "support", "noise")}
PERFORMANCE_FIGURES = {"10_performance": ("seeds", "batches", "sampling")}


def figure_path(run: Run, notebook: str, name: str, method: str | None = None) -> Path:
    """Where a notebook's figure of `FIGURES` is written; 06_energy writes one set a method."""
    if name not in FIGURES[notebook]:
        raise ValueError(f"{name!r} is not a figure of {notebook}")
    return run.figures / f"{notebook[:2]}_{name}{f'-{method}' if method else ''}.png"


def products(
    folder: Path, figures: Path, methods: Sequence[str], profile: settings_table.Profile, rollouts: bool = True
) -> dict[str, list[Path]]:
    """The files that each executed notebook leaves behind: networks, tables, figures; fewer without rollouts."""
    results = folder.parents[0 if settings_table.is_smoke(folder.parent.name) else 1] / "results.csv"
    guided, beta = methods_table.energies(methods), profile.evaluation.beta
    made = {"03_dataset": [], "04_behavior": ["behavior.safetensors"], "05_critic": ["critic.safetensors"]}
    made |= {f"06_energy-{m}": [f"{energy_stage(m, beta[m])}.safetensors"] for m in guided}
    made |= {
        f"06_policy-{m}": [f"{policy_stage(m, beta.get(m, 0.0))}.safetensors"] for m in methods_table.policies(methods)
    }
    made |= {"09_guidance_on_real_tasks": []} if guided else {}
    made |= {
        "07_evaluation": ["returns.csv", *(f"evaluation/{m}.safetensors" for m in methods if rollouts)],
        "08_results": [results],
    }
    result = {}
    for notebook, paths in made.items():
        base, _, method = notebook.partition("-")
        suffix = f"-{method}" if method else ""
        drawn = [
            figures / f"{base[:2]}_{name}{suffix}.png"
            for name in FIGURES[base]
            if (guided or name != "guidance_curves") and (rollouts or name not in OF_ROLLOUTS)
        ]
        result[notebook] = [folder / f"{notebook}.ipynb", *(folder / name for name in paths), *drawn]
    return result


def theory_products(
    folder: Path, figures: Path, drawn: Mapping[str, Sequence[str]] = THEORY_FIGURES
) -> dict[str, list[Path]]:
    """The files that each executed notebook of the theory (or of PERFORMANCE_FIGURES) leaves behind."""
    return {
        notebook: [folder / f"{notebook}.ipynb", *(figures / f"{notebook[:2]}_{name}.png" for name in names)]
        for notebook, names in drawn.items()
    }


def forget_incomplete(folder: Path, made: Mapping[str, Sequence[Path]]) -> None:
    """Remove the end mark of each notebook whose files are not all there, so that it runs again."""
    for notebook, paths in made.items():
        if not all(path.exists() for path in paths):
            (folder / ".done" / notebook).unlink(missing_ok=True)
