"""Visible progress: one line in a terminal or a notebook, and one small file a stage for `make`."""

import contextlib
import sys
import time
from pathlib import Path

from tqdm.std import tqdm


class _NotebookLine:
    """A stream for tqdm that keeps rewriting one output line of a notebook cell."""

    def __init__(self):
        from IPython.display import display

        self._handle = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        if text.strip():
            self._handle.update({"text/plain": text.strip("\r\n")}, raw=True)

    def flush(self) -> None:
        pass


class Progress(contextlib.AbstractContextManager):
    """Counts `total` units of a stage; `folder/<stage>.txt` tells other processes where it stands."""

    def __init__(self, stage: str, total: int, folder: Path | None = None, initial: int = 0):
        look = {"desc": stage, "unit": "step", "unit_scale": True, "mininterval": 0.5}
        if "IPython" in sys.modules and hasattr(sys.modules["IPython"].get_ipython(), "kernel"):
            look |= {"file": _NotebookLine(), "ncols": 100}
        self._bar = tqdm(total=total, initial=initial, **look)
        self._path, self._written = folder / f"{stage}.txt" if folder else None, 0.0
        self._write()

    def update(self, count: int, **values: float) -> None:
        """Count `count` more units and show the latest values beside the bar."""
        self._bar.set_postfix({key: f"{value:.3g}" for key, value in values.items()}, refresh=False)
        self._bar.update(count)
        self._write()

    def _write(self) -> None:
        if self._path is None or time.monotonic() - self._written < 0.5:
            return
        self._written = time.monotonic()
        look = {"bar_format": "{desc} {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left", "ncols": None}
        with contextlib.suppress(OSError):  # a progress line is never worth a failed training
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")  # no fsync, as an atomic file has
            temporary.write_text(self._bar.format_meter(**self._bar.format_dict | look))
            temporary.replace(self._path)

    def __exit__(self, *exception) -> None:
        self._bar.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
