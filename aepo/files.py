"""Errors, atomic files, locks, checked tensors, and what made them."""

import contextlib
import fcntl
import functools
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = 2  # of what a stage writes; part of its settings hash, so that files of another format are made again
USED_FILES = "AEPO_USED_FILES"  # environment variable of a notebook that `scripts/run_papermill.py` executes
PACKAGES = ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "safetensors")
DATASETS = "MINARI_DATASETS_PATH"
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
REMEDY = "delete it and run its stage again"
REMAKE = "move it away and run the notebooks again, finished stages are kept"


class StudyError(RuntimeError):
    """Something the user can mend: the message says what is wrong, where, and what to do."""


def project_root() -> Path:
    """The nearest folder at or above the working directory that holds the Snakefile; else the working directory."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "Snakefile").exists()), here)


def datasets_root() -> Path:
    """Minari's folder, ~/.minari/datasets or MINARI_DATASETS_PATH; from now on absolute, also for what this process starts.

    One that is relative is below the project, as runs are, an empty one is none; StudyError where it can be no folder.
    """
    given = os.path.expanduser(os.environ.get(DATASETS) or "~/.minari/datasets")
    path = project_root() / given
    wrong = next((p for p in (path, *path.parents) if os.path.exists(p) and not os.path.isdir(p)), None)
    if wrong or given.startswith("~"):
        problem = f"{wrong} is a file" if wrong else f"there is no home folder {given.partition('/')[0]}"
        raise StudyError(f"{DATASETS} is {os.environ.get(DATASETS)!r}, but {problem}: set it to a folder, or unset it")
    os.environ[DATASETS] = str(path)
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, locked, that replaces it when the block ends well; what the killed left is removed."""
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
        problem = f"cannot write {path} ({error.strerror or error})"
        raise StudyError(f"{problem}: free space or choose another runs_dir") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    note_use(path)


def note_use(path: Path) -> None:
    """Tell who executes this notebook, if one is executed, that it wrote this file or found it finished."""
    if USED_FILES in os.environ:
        with open(os.environ[USED_FILES], "a") as file:
            file.write(f"{path.absolute()}\n")


def short(path: Path) -> str:
    """The path, relative to the working directory where it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@contextmanager
def sentence() -> Iterator[None]:
    """A ValueError becomes a StudyError that says the same."""
    try:
        yield
    except ValueError as error:
        raise StudyError(str(error)) from None


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
            meta = dict(json.loads((file.metadata() or {}).get("aepo", "{}")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it is no safetensors file, or a damaged one"
        raise StudyError(f"{path} cannot be read ({reason}): {REMEDY}") from None
    if meta.get("format") != FORMAT:
        raise StudyError(f"{path} has format {meta.get('format')}, this version reads {FORMAT}: {REMEDY}")
    if meta.get("sha256") != _content_hash(tensors):
        raise StudyError(f"{path} is damaged (its checksum does not match): {REMEDY}")
    note_use(path)
    return tensors, meta


def write_artifact(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """A finished stage: the same metadata as JSON for people, and the networks with their metadata."""
    write_json(path.with_suffix(".json"), meta)
    save_tensors(path, tensors, meta)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that `write_json` wrote, empty where there is none; StudyError where it is something else."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise StudyError(f"{path} cannot be read ({reason}): {REMAKE}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} is no file of this study: {REMAKE}")
    note_use(path)
    return content


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def git_commit(root: Path) -> str | None:
    """Commit of the project that runs, with `+` where tracked files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=root).stdout.strip() or None
    except OSError:
        return None


def out_of_memory(error: BaseException) -> bool:
    """Whether it tells of a lack of memory, of the machine or of its GPU."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in NO_MEMORY)


@contextmanager
def memory(what: str, remedy: str) -> Iterator[None]:
    """Out of memory, of the machine or of its GPU, becomes a StudyError that says where and what to try."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, StudyError) or not out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:160] or "no block that large"
        raise StudyError(f"{what}: out of memory ({text}): {remedy}") from None


def load_networks(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`load_tensors` of a stage: it names its seeds and settings, each tensor has rows for them, every number is finite."""
    tensors, meta = load_tensors(path)
    seeds, settings = meta.get("seeds"), meta.get("settings")
    if not (isinstance(settings, dict) and isinstance(seeds, list) and seeds and {*map(type, seeds)} == {int}):
        raise StudyError(f"{path} does not name its seeds and settings, so it is no stage of this study: {REMEDY}")
    for name, tensor in tensors.items():
        if not tensor.ndim or len(tensor) % len(seeds):
            raise StudyError(f"{path}: {name} has the shape {tuple(tensor.shape)}, not {len(seeds)} seeds: {REMEDY}")
        if not torch.isfinite(tensor).all():
            raise StudyError(f"{path}: {name} holds NaN or infinity: {REMEDY}")
    return tensors, meta
