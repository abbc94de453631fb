"""Where a run's files lie, how they are written (atomically) and read (checked), and the manifest of what made them."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from aepo import methods as methods_table
from aepo import provenance, tasks
from aepo import settings as settings_table
from aepo.methods import METHODS

FORMAT = 2  # of what a stage writes; part of its settings hash, so that files of another format are made again
READABLE = (1, 2)  # formats whose networks can still be read
SECTIONS = ("stages", "evaluation", "data")  # of the manifest
REMAKE = "move it away and run the notebooks again, finished stages are kept"


class StudyError(RuntimeError):
    """Something the user can mend: the message says what is wrong, where, and what to do."""


def project_root() -> Path:
    """The nearest folder at or above the working directory that holds the Snakefile; else the working directory."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "Snakefile").exists()), here)


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


def critic_stage(kind: str) -> str:
    """Name of the stage of a shared critic: critic, or critic-softmax."""
    return "critic" if kind == "expectile" else f"critic-{kind}"


def policy_stage(method: str, beta: float) -> str:
    """Name of the stage that trains a method's own policy: policy-<method>, with -b<beta> where it has one."""
    return f"policy-{method}" + (f"-b{beta:g}" if METHODS[method].tempered else "")


def stages_of(method: str, beta: float) -> dict[str, str]:
    """The stages whose networks a method acts with, by their part: behavior (what makes actions), critic, energy."""
    entry = METHODS[method]
    parts = {"behavior": policy_stage(method, beta) if entry.policy else "behavior"}
    if entry.pick or entry.closed:
        parts["critic"] = parts["behavior"] if entry.policy == "diffusion-q" else critic_stage(entry.critic)
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


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that replaces `path` when the block ends well: fsync, rename, fsync folder.

    It is locked meanwhile; what killed processes left of their own attempts, locked by nobody, is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        with open(temporary, "wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        raise StudyError(
            f"cannot write {path} ({error.strerror or error}): free space or choose another runs_dir"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sweep(folder: Path, name: str) -> None:
    """Remove the temporary files of `name` (and of what begins with it and a dot) that killed processes have left."""
    for left in folder.glob(f".{glob.escape(name)}.*.tmp"):
        with contextlib.suppress(OSError), open(left, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


@contextmanager
def lock(folder: Path, name: str) -> Iterator[int]:
    """Exclusive lock that the system releases when its process ends, however it ends; a second process waits.

    Yields the descriptor that holds it: a child that inherits it (`pass_fds`) holds the lock too.
    """
    path = folder / ".locks" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115
    except OSError as error:
        raise StudyError(f"cannot write {path} ({error.strerror}): free space or choose another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process works on {name} in {folder}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _content_hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors with their metadata and checksum as safetensors, atomically; equal content gives equal bytes."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header = {"format": FORMAT, "sha256": _content_hash(tensors), **meta}
    payload = save(tensors, metadata={"aepo": json.dumps(header, sort_keys=True)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(payload)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote and check format and checksum; StudyError names the file and what to do."""
    if not path.exists():
        raise StudyError(f"{path} is missing: run the notebook that makes it first (README lists them in order)")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("aepo", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = meta if isinstance(meta, dict) else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read ({error}): delete it and run its stage again") from None
    if meta.get("format") not in READABLE:
        raise StudyError(
            f"{path} has format {meta.get('format')}, this version reads {READABLE}: delete it and run its stage again"
        )
    if meta.get("sha256") != _content_hash(tensors):
        raise StudyError(f"{path} is damaged (its checksum does not match): delete it and run its stage again")
    return tensors, meta


def write_artifact(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """A finished stage: the same metadata as JSON for people, and the networks with their metadata."""
    write_json(path.with_suffix(".json"), meta)
    save_tensors(path, tensors, meta)


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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that `write_json` wrote, empty where there is none; StudyError where it is something else."""
    try:
        content = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read ({error}): {REMAKE}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} is no file of this study: {REMAKE}")
    return content


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
    made_with = {"versions": provenance.versions(), "git_commit": provenance.git_commit(project_root())}
    with lock(folder, "manifest"):
        manifest = read_manifest(folder) | made_with
        manifest.setdefault(section, {})[name] = dict(entry) | made_with
        write_json(folder / "manifest.json", manifest)


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
    for notebook, files in made.items():
        base, _, method = notebook.partition("-")
        suffix = f"-{method}" if method else ""
        drawn = [
            figures / f"{base[:2]}_{name}{suffix}.png"
            for name in FIGURES[base]
            if (guided or name != "guidance_curves") and (rollouts or name not in OF_ROLLOUTS)
        ]
        result[notebook] = [folder / f"{notebook}.ipynb", *(folder / name for name in files), *drawn]
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
    for notebook, files in made.items():
        if not all(path.exists() for path in files):
            (folder / ".done" / notebook).unlink(missing_ok=True)
