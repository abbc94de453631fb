"""Execute a notebook; the mark that it then leaves lists the files that it wrote or found finished.

run_papermill.py NOTEBOOK EXECUTED MARK PARAMETERS DEVICE RUNS_DIR [ATTEMPT]: the parameters are JSON, the mark is
runs/<profile>/<task>/.done/<name>. What stopped with a StudyError would do so again: it is not tried twice.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

# jsonschema goes on without the grammar of IRIs, which it would compile at its start, longer than papermill takes itself.
sys.modules["rfc3987_syntax"] = None

import papermill  # noqa: E402


def main(
    notebook: str, executed: str, mark: str, parameters: str, device: str, runs_dir: str, attempt: str = "1"
) -> None:
    """Files outside of the runs and of the figures beside them, such as datasets, are not listed."""
    kept = Path(executed).with_name(f".{Path(executed).name}")  # Snakemake deletes `executed` before a second attempt
    if attempt != "1" and kept.exists():
        kept.replace(executed)
        sys.exit(f"{executed} stopped with a StudyError: not tried again")
    kept.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile("r") as used:
        os.environ["AEPO_USED_FILES"] = used.name  # `files.note_use` in the notebook's kernel appends to it
        asked = papermill.inspect_notebook(notebook)
        given = json.loads(parameters) | {"device": device, "runs_dir": runs_dir}
        given = {name: value for name, value in given.items() if name in asked}
        try:
            papermill.execute_notebook(notebook, executed, given, progress_bar=False)
        except papermill.exceptions.PapermillExecutionError as error:
            if error.ename == "StudyError":
                shutil.copy2(executed, kept)
            raise
        paths = {Path(line) for line in used.read().splitlines()} | {Path(executed)}
    homes = (Path(runs_dir), Path(runs_dir).parent / "figures")
    listed = sorted(path for path in paths if path.exists() and any(path.is_relative_to(home) for home in homes))
    folder = Path(mark).parent
    folder.mkdir(parents=True, exist_ok=True)
    Path(mark).write_text("".join(f"{os.path.relpath(path, folder)}\n" for path in listed))


if __name__ == "__main__":
    main(*sys.argv[1:])
