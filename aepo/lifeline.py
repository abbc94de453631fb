"""Processes that do not outlive the one that started them, however it ends: SIGKILL cannot be caught, a closed pipe can."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

GRACE = 3.0  # seconds between SIGTERM and SIGKILL


def start(command: Sequence[str], **options) -> subprocess.Popen:
    """As Popen, in a session of its own: the command, and what it starts there, end when this process is gone."""
    line = [sys.executable, "-I", __file__, *command]
    return subprocess.Popen(line, stdin=subprocess.PIPE, start_new_session=True, **options)


def stop(process: subprocess.Popen) -> None:
    """End what `start` started, and all of its session; a kernel ends by itself when its papermill is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE + 2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _hold(command: Sequence[str]) -> int:
    """Run the command; end the session when the command is killed or standard input, never written to, closes."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False)  # a lock passed on is held below too
    ending = threading.Event()

    def end(*_):
        if not ending.is_set():
            ending.set()
            os.killpg(0, signal.SIGTERM)
            time.sleep(GRACE)
            os.killpg(0, signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    threading.Thread(target=lambda: (os.read(0, 1), end()), daemon=True).start()
    code = child.wait()
    if ending.is_set() or code < 0:
        os.killpg(0, signal.SIGKILL)
    return code


if __name__ == "__main__":
    sys.exit(_hold(sys.argv[1:]))
