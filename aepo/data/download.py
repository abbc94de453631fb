"""Minari's own datasets, downloaded into Minari's folder: whole and checked, or not at all."""

import contextlib
import errno
import io
import os
import re
import warnings
from pathlib import Path

import minari
from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session
from minari.storage.remotes import DEFAULT_REMOTE

from aepo.data import reading, storage
from aepo.data.tasks import TASKS, Task
from aepo.files import StudyError

CONNECT_SECONDS = 5
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO)


def download_dataset(task: Task, dataset_id: str) -> str:
    """Download a task's dataset where it is not on disk yet, and compare sizes and checksums; returns its id."""
    kind, _, owner = os.environ.get("MINARI_REMOTE", DEFAULT_REMOTE).partition("://")
    with storage.claim(dataset_id) as staging:
        if staging is None:
            return dataset_id
        try:
            if kind == "hf":
                _check_that_the_hub_answers(dataset_id, task)
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*recommend you install a higher dataset version.*")
                minari.download_dataset(dataset_id)
            if kind == "hf":
                _compare(staging, owner, dataset_id)
        except Exception as error:
            if isinstance(error, StudyError) or getattr(error, "errno", None) in DISK:
                raise  # the latter `claim` explains
            raise StudyError(_explain(error, dataset_id, task)) from error
        try:
            reading.metadata(staging / dataset_id, dataset_id)
            reading.open_hdf5(staging / dataset_id / "data" / "main_data.hdf5").close()
        except StudyError as error:
            problem, again = str(error).rpartition(": ")[0], f"try again{instead(task)}"
            raise StudyError(f"the download of {dataset_id} cannot be used ({problem}): {again}") from None
    return dataset_id


def instead(task: Task) -> str:
    """Which local task makes such data, as the end of a sentence; empty where none does."""
    stem = re.sub(r"-v\d+$", "", task.name)
    names = {f"local-{stem}", stem.replace("d4rl-maze2d-", "maze2d-"), re.sub("^(mujoco|d4rl)-", "local-", stem)}
    found = next((name for name in sorted(names - {task.name}) if name in TASKS and TASKS[name].recipe), None)
    return f"; the task {found} makes such data on this machine (`aepo data collect {found}`)" if found else ""


def _check_that_the_hub_answers(dataset_id: str, task: Task) -> None:
    """StudyError at once where it does not: the hub's client would try again for half a minute."""
    try:
        get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS)
    except Exception:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"no connection within {CONNECT_SECONDS} s"
        problem = f"dataset {dataset_id} is not on disk, and {constants.ENDPOINT} does not answer ({reason})"
        copy = f"copy the folder {dataset_id} of another machine's Minari folder to"
        remedy = f"connect to the network, or {copy} {storage.root().parent / dataset_id}{instead(task)}"
        raise StudyError(f"{problem}: {remedy}") from None


def _compare(staging: Path, owner: str, dataset_id: str) -> None:
    """Every file of the dataset is there as the hub describes it: its size, and its SHA-256 where it is a large one."""
    group, _, inside = dataset_id.partition("/")
    for entry in HfApi().list_repo_tree(f"{owner}/{group}", inside or None, recursive=True, repo_type="dataset"):
        path, problem = staging / group / entry.path, ""
        if isinstance(entry, RepoFile):
            found = path.stat().st_size if path.exists() else None
            if found != entry.size:
                problem = f"incomplete ({group}/{entry.path}: {found} of {entry.size} bytes)"
            elif entry.lfs and storage.sha256(path) != entry.lfs.sha256:
                problem = f"damaged ({group}/{entry.path}: checksum differs)"
        if problem:
            raise StudyError(f"the download of {dataset_id} is {problem}: try again")


def _explain(error: Exception, dataset_id: str, task: Task) -> str:
    """One sentence with the next step for what Minari or the hub's client raised."""
    text = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, ValueError) and "Couldn't find any version" in text:
        return f"Minari's server has no dataset {dataset_id}: correct its name{instead(task)}"
    if isinstance(error, ValueError) and ("version" in text or "compatible" in text):
        return f"dataset {dataset_id} cannot be downloaded: {text.rstrip('.')}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = f"the server answered {status}" if status else "the answer broke off, or was none of the hub's"
    return f"the download of {dataset_id} failed ({reason}): try again{instead(task)}"
