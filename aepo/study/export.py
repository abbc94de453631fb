"""One seed of what a run's methods act with, as a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aepo import files
from aepo.core.networks import select_seeds
from aepo.files import StudyError
from aepo.study import runs


def export(folder: Path, target: Path, seed: int, methods: Sequence[str]) -> int:
    """Copy one seed of what some methods act with to `target`, the manifest with it; returns the bytes written."""
    if Path(target).resolve() == Path(folder).resolve():
        raise StudyError(f"{target} is the run itself: export into another folder")
    manifest = runs.read_manifest(folder)
    evaluated = {name: entry for name, entry in manifest.get("evaluation", {}).items() if name in methods}
    if lacking := [name for name in methods if name not in evaluated]:
        raise StudyError(f"{folder} has no evaluation of {', '.join(lacking)}: run `make reproduce METHODS=...` first")
    used = {stage for name, entry in evaluated.items() for stage in runs.stages_of(name, entry["beta"]).values()}
    for stage in sorted(used):
        path = folder / f"{stage}.safetensors"
        tensors, meta = files.load_networks(path)
        if seed not in (seeds := meta["seeds"]):
            raise StudyError(f"{folder} holds seeds {seeds}, not {seed}")
        chosen = {
            key: select_seeds(t, [seeds.index(seed)], len(seeds))
            for key, t in tensors.items()
            if not key.startswith("q_target.")
        }
        meta = {key: value for key, value in meta.items() if key not in ("format", "sha256")} | {"seeds": [seed]}
        files.write_artifact(target / f"{stage}.safetensors", chosen, meta)
    kept = {name: entry | {"seeds": [seed]} for name, entry in manifest["stages"].items() if name in used}
    files.write_json(target / "manifest.json", manifest | {"stages": kept, "evaluation": evaluated})
    return sum(path.stat().st_size for path in target.iterdir())
