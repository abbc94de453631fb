"""Where Minari's datasets lie, and how a new one is put there in one piece."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from minari.storage.datasets_root_dir import get_dataset_path

from aepo import files

CLIP_MARK = "clip-actions"
EPISODE_BYTES = 16_384  # that HDF5 needs for an episode beside its numbers
CACHE_BYTES = 8  # that the cache needs for a number of a step, at most


def root() -> Path:
    """Minari's folder: ~/.minari/datasets, or MINARI_DATASETS_PATH."""
    return Path(get_dataset_path())


def complete(dataset_id: str) -> bool:
    """Whether the dataset is on disk; what is there was moved there in one piece."""
    return (root() / dataset_id / "data" / "metadata.json").exists()


def lock(dataset_id: str) -> AbstractContextManager[int]:
    """The lock of a dataset's making, of the datasets below Minari's folder."""
    return files.lock(root(), dataset_id.replace("/", "-"))


def clips(folder: Path) -> bool:
    """Whether it was asked that this dataset's actions be moved into the action box where they are outside."""
    return (folder / CLIP_MARK).exists()


def clip(dataset_id: str) -> None:
    """Ask for that: a mark beside the data, which themselves stay as they are."""
    mark = root() / dataset_id / CLIP_MARK
    try:
        mark.touch()
    except OSError as error:
        raise files.StudyError(f"cannot write {mark} ({reason(error)})") from None


@contextmanager
def claim(dataset_id: str) -> Iterator[Path | None]:
    """None where the dataset is complete already; else a staging folder that Minari writes into meanwhile.

    What lies there when the block ends well is moved into place, otherwise it is removed. The dataset's lock is held: a
    second process waits, then finds the dataset complete. StudyError where the disk does not do it.
    """
    folder = root()
    try:
        with lock(dataset_id):
            if complete(dataset_id):
                yield None
                return
            with _staging(folder, dataset_id) as staging:
                yield staging
                _place(staging, folder, dataset_id)
    except files.StudyError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        if not isinstance(error, OSError) and "errno = " not in str(error):
            raise  # HDF5 names the system's errors in the text of others
        raise files.StudyError(
            f"cannot write the dataset {dataset_id} to {folder} ({reason(error)}): "
            "free space or set MINARI_DATASETS_PATH to a writable folder"
        ) from error


@contextmanager
def _staging(folder: Path, dataset_id: str) -> Iterator[Path]:
    """A folder beside Minari's own, for which Minari takes it; a killed process's leftovers are removed first."""
    staging = folder / f".staging-{dataset_id.replace('/', '-')}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(staging)
    try:
        yield staging
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
        shutil.rmtree(staging, ignore_errors=True)


def _place(staging: Path, folder: Path, dataset_id: str) -> None:
    target = folder / dataset_id
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(staging / dataset_id, target)


def reserve(staging: Path, steps: int, episodes: int, numbers: tuple[int, int]) -> None:
    """Make sure that a dataset of this size fits on the disk with its cache (OSError), as the system knows best.

    HDF5 does not survive a full disk: it ends the process. `numbers`: in an observation and in an action.
    """
    needed = steps * (8 * sum(numbers) + 16) + EPISODE_BYTES * episodes + steps * CACHE_BYTES * sum(numbers)
    with open(staging / "space", "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(needed, 1))
        except (AttributeError, OSError) as error:  # no such call here, or not on this file system
            if getattr(error, "errno", None) not in (None, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            if shutil.disk_usage(staging).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        finally:
            os.unlink(staging / "space")


def reason(error: Exception) -> str:
    """The system's words for an error, without the rest of HDF5's long messages."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    found = re.search(r"error message = '([^']+)'", text) or re.search(r"\(([^():,]+)", text)
    return found[1].strip() if found else text


def references(metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    """The returns of score 0 and 100 that a dataset's metadata hold, or None."""
    scores = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    return None if None in scores else (float(scores[0]), float(scores[1]))


def requirements() -> list[str]:
    """What the bytes of simulated data depend on, in pip's style."""
    return [
        f"{name}=={version}" for name, version in files.versions().items() if name in ("mujoco", "gymnasium-robotics")
    ]
