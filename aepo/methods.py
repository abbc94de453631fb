"""The methods that the study compares: one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One policy. `energy`: its target in `losses.TARGETS`, or None; `candidates`: pick the best of several by Q."""

    name: str
    label: str
    source: str
    energy: str | None = None
    candidates: bool = False


METHODS = {
    method.name: method
    for method in [
        Method("bc", "diffusion cloning", "guidance scale 0"),
        Method("best-of-n", "best of n", "Chen et al. 2023 (SfBC); Hansen-Estruch et al. 2023 (IDQL)", candidates=True),
        Method("aepo", "AEPO", "arXiv 2505.01822: first-order closed form", energy="taylor"),
        Method("aepo-cubature", "AEPO, cubature", "this study: cubature over the same Gaussian", energy="cubature"),
    ]
}
DATASET = "dataset"
LABELS = {DATASET: "recorded behavior"} | {method.name: method.label for method in METHODS.values()}
