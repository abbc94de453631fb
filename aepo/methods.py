"""The methods that the study compares: one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One policy. `candidates`: pick the best of several by Q.

    `energy`: what its energy network learns from (`energies.target`, or the contrastive loss), or None; `bregman`: by
    the Bregman loss, whose optimum is log E[exp(target)], instead of squared error.
    """

    name: str
    label: str
    source: str
    energy: str | None = None
    candidates: bool = False
    bregman: bool = False


METHODS = {
    method.name: method
    for method in [
        Method("bc", "diffusion cloning", "guidance scale 0"),
        Method("best-of-n", "best of n", "Chen et al. 2023 (SfBC); Hansen-Estruch et al. 2023 (IDQL)", candidates=True),
        Method("aepo", "AEPO", "arXiv 2505.01822: first-order closed form", energy="taylor"),
        Method("aepo-cubature", "AEPO, cubature", "this study: cubature over the same Gaussian", energy="cubature"),
        Method(
            "aepo-support",
            "AEPO, support",
            "this study: self-normalised estimate over behavior samples, Bregman loss",
            energy="support",
            bregman=True,
        ),
        Method("exp-q", "exp Q", "this study: beta Q(a_0) under the Bregman loss", energy="clean", bregman=True),
        Method("mean-q", "mean Q", "regression of beta Q(a_0) on a_t", energy="clean"),
        Method("qgpo", "QGPO", "Lu et al. 2023: contrastive energy prediction", energy="contrastive"),
    ]
}
CORE = ("bc", "best-of-n", "aepo", "aepo-cubature")
DATASET = "dataset"
LABELS = {DATASET: "recorded behavior"} | {method.name: method.label for method in METHODS.values()}
