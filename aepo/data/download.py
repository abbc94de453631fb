"""Minari's own datasets, downloaded into Minari's folder: whole and checked, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import minari
from minari.storage.remotes import DEFAULT_REMOTE

from aepo.data import reading, storage
from aepo.data.tasks import TASKS, Task
from aepo.files import StudyError
from aepo.progress import Progress

CONNECT_SECONDS = 5
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO)


def fetch(task: Task, dataset_id: str, progress: bool = True) -> str:
    """Download a task's dataset where it is not on disk yet; returns its id.

    Sizes and checksums that the server names are compared. StudyError, and nothing written, where it does not succeed.
    """
    with storage.claim(dataset_id) as staging:
        if staging is None:
            return dataset_id
        try:
            _answers(dataset_id, task)
            expected = _files(dataset_id)
            total = sum(size for size, _ in expected.values())
            with (
                _watched(staging, total if progress else 0),
                contextlib.redirect_stdout(io.StringIO()),
                warnings.catch_warnings(),
            ):
                warnings.filterwarnings("ignore", message=".*recommend you install a higher dataset version.*")
                minari.download_dataset(dataset_id)
            _compare(staging, dataset_id, expected)
        except StudyError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK:
                raise  # which `claim` explains
            raise StudyError(_explain(error, dataset_id, task)) from error
        folder = staging / dataset_id
        metadata = reading.metadata(folder, dataset_id)
        if metadata.get("data_format", "hdf5") == "hdf5":
            reading.open_hdf5(folder / "data" / "main_data.hdf5").close()
    return dataset_id


def instead(task: Task) -> str:
    """Which local task makes such data, as the end of a sentence; empty where none does."""
    stem = re.sub(r"-v\d+$", "", task.name)
    candidates = (
        f"local-{stem}",
        stem.replace("mujoco-", "local-"),
        stem.replace("d4rl-maze2d-", "maze2d-"),
        stem.replace("d4rl-", "local-"),
    )
    found = next((name for name in candidates if name in TASKS and TASKS[name].recipe and name != task.name), None)
    return f"; the task {found} makes such data on this machine (`aepo data collect {found}`)" if found else ""


def _remote() -> tuple[str, str]:
    """Kind and owner of Minari's server: ("hf", "farama-minari") unless MINARI_REMOTE names another."""
    kind, _, owner = os.environ.get("MINARI_REMOTE", DEFAULT_REMOTE).partition("://")
    return kind, owner


def _answers(dataset_id: str, task: Task) -> None:
    """StudyError at once where the server does not answer: the hub's client would try again for half a minute."""
    if _remote()[0] != "hf":
        return
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS)
    except Exception as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _line(error)
        raise StudyError(
            f"dataset {dataset_id} cannot be downloaded, {constants.ENDPOINT} does not answer ({reason}): connect to the "
            f"network, or copy the folder {dataset_id} from another machine's Minari folder to {storage.root().parent}"
            f"{instead(task)}"
        ) from None


def _files(dataset_id: str) -> dict[str, tuple[int, str | None]]:
    """Size and SHA-256 (None for small files) of each of the dataset's files on the hub, by path in Minari's folder."""
    kind, owner = _remote()
    if kind != "hf":
        return {}
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    group, _, inside = dataset_id.partition("/")
    try:
        entries = list(HfApi().list_repo_tree(f"{owner}/{group}", inside or None, recursive=True, repo_type="dataset"))
    except (EntryNotFoundError, RepositoryNotFoundError):
        return {}  # Minari says what it knows
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {f"{group}/{file.path}": (file.size, file.lfs.sha256 if file.lfs else None) for file in files}


def _compare(staging: Path, dataset_id: str, expected: Mapping[str, tuple[int, str | None]]) -> None:
    """Every file is there, as the server described it."""
    for name, (size, sha256) in expected.items():
        path = staging / name
        found = path.stat().st_size if path.exists() else None
        if found != size:
            raise StudyError(f"the download of {dataset_id} is incomplete ({name}: {found} of {size} bytes): try again")
        if sha256 is None:
            continue
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise StudyError(f"the download of {dataset_id} is damaged ({name}: checksum differs): try again")


def _explain(error: Exception, dataset_id: str, task: Task) -> str:
    """One sentence with the next step for what Minari or the hub's client raised."""
    text = _line(error)
    if isinstance(error, ValueError) and "Couldn't find any version" in text:
        return f"Minari's server has no dataset {dataset_id}: correct its name{instead(task)}"
    if isinstance(error, ValueError) and ("version" in text or "compatible" in text):
        return f"dataset {dataset_id} cannot be downloaded: {text.rstrip('.')}"
    if "Consistency check failed" in text:
        return f"the download of {dataset_id} is incomplete ({text}): try again"
    return f"the download of {dataset_id} failed ({type(error).__name__}: {text}): try again{instead(task)}"


def _line(error: Exception) -> str:
    """The first line of an error's text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _watched(folder: Path, total: int) -> Iterator[None]:
    """One progress bar over the bytes that have arrived in a folder, in place of the hub's own bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        if not total:
            yield
            return
        with Progress("download", total, unit="B") as bar:
            stop, seen = threading.Event(), [0]

            def look() -> None:
                size = 0
                for path in folder.rglob("*"):
                    with contextlib.suppress(OSError):
                        size += path.stat().st_size if path.is_file() else 0
                size = min(size, total)
                bar.update(max(size - seen[0], 0))
                seen[0] = max(size, seen[0])

            def watch() -> None:
                while not stop.wait(0.5):
                    look()

            thread = threading.Thread(target=watch, daemon=True)
            thread.start()
            try:
                yield
                look()
            finally:
                stop.set()
                thread.join()
    finally:
        if not silent:
            enable_progress_bars()
