"""Where Minari's datasets lie, and how a new one is put there in one piece."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from aepo import files
from aepo.files import datasets_root as root

CLIP_MARK = "clip-actions"
EPISODE_BYTES = 16_384  # that HDF5 needs for an episode beside its numbers
CACHE_BYTES = 8  # that the cache needs for a number of a step, at most


def complete(dataset_id: str) -> bool:
    """Whether the dataset is on disk; what is there was moved there in one piece."""
    return (root() / dataset_id / "data" / "metadata.json").exists()


def remake(folder: Path) -> str:
    """What ends the trouble with a dataset that is damaged, as the end of a sentence."""
    return f"delete the folder {folder} and get the data again"


def is_clipped(folder: Path) -> bool:
    """Whether it was asked that this dataset's actions be moved into the action box where they are outside."""
    return (folder / CLIP_MARK).exists()


def ask_to_clip(dataset_id: str) -> None:
    """Ask for that: a mark beside the data, which themselves stay as they are."""
    mark = root() / dataset_id / CLIP_MARK
    try:
        mark.touch()
    except OSError as error:
        raise files.StudyError(f"cannot write {mark} ({reason(error)})") from None


@contextmanager
def claim(dataset_id: str) -> Iterator[Path | None]:
    """None where the dataset is complete already; else a staging folder that Minari writes into meanwhile, locked.

    What lies there when the block ends well is moved into place, otherwise it is removed.
    """
    folder, name = root(), dataset_id.replace("/", "-")
    staging, target = folder / f".staging-{name}", folder / dataset_id
    try:
        with files.lock(folder, name):
            if complete(dataset_id):
                yield None
                return
            shutil.rmtree(staging, ignore_errors=True)  # what a killed process left
            staging.mkdir(parents=True)
            try:
                with mock.patch.dict(os.environ, MINARI_DATASETS_PATH=str(staging)):
                    yield staging
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(staging / dataset_id, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except (OSError, RuntimeError, ValueError) as error:
        if not isinstance(error, OSError) and "errno = " not in str(error):
            raise  # HDF5 names the system's errors in the text of others
        problem = f"cannot write the dataset {dataset_id} to {folder} ({reason(error)})"
        remedy = "free space or set MINARI_DATASETS_PATH to a writable folder"
        raise files.StudyError(f"{problem}: {remedy}") from error


def reserve(staging: Path, steps: int, episodes: int, numbers: tuple[int, int]) -> None:
    """Make sure that a dataset of this size fits on the disk with its cache (OSError), as the system knows best.

    HDF5 does not survive a full disk: it ends the process. `numbers`: in an observation and in an action.
    """
    needed = steps * ((8 + CACHE_BYTES) * sum(numbers) + 16) + EPISODE_BYTES * episodes
    with tempfile.TemporaryFile(dir=staging) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(needed, 1))
        except (AttributeError, OSError) as error:  # no such call here, or not on this file system
            if getattr(error, "errno", None) not in (None, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            if shutil.disk_usage(staging).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: Exception) -> str:
    """The system's words for an error, without the rest of HDF5's long messages."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    found = re.search(r"error message = '([^']+)'", text) or re.search(r"\(([^():,]+)", text)
    return found[1].strip() if found else text
