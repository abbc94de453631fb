"""The methods that the study compares: one table. docs/methods.md says what each source leaves open and what was chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One policy, by what makes its actions and what it shares with the others.

    `energy`: what its network learns: a closed form of the energy (`guidance.KINDS`), "support", "clean" (beta Q of the
    recorded action), "contrastive"; or of the shift, "shift-taylor", "shift-cubature". `bregman`: by the Bregman loss, whose
    optimum is log E[exp(target)]. `gate`: its guidance vanishes at pure noise. `shift`: guided by a closed form of the shift
    ("taylor", "cubature"), no network. `policy`: what its own network learns (`policies.MODELS`). `best`: of several samples
    it takes the best by Q.
    """

    name: str
    label: str
    source: str
    energy: str | None = None
    bregman: bool = False
    gate: bool = True
    shift: str | None = None
    policy: str | None = None
    best: bool = False

    @property
    def guided(self) -> bool:
        """Whether a guidance scale applies."""
        return self.shift is not None or self.energy is not None

    @property
    def scaled(self) -> bool:
        """Whether its guidance scale is chosen by the rule: a shift is in units of the action, its scale is 1."""
        return self.energy is not None and not self.energy.startswith("shift-")

    @property
    def tempered(self) -> bool:
        """Whether an inverse temperature beta applies."""
        return self.guided or self.policy in ("weighted", "flow", "gaussian")


QIPO = "Zhang et al. 2025 (arXiv 2503.04975): energy-weighted"
ROWS = [
    Method("bc", "diffusion cloning", "guidance scale 0"),
    Method("bc-low-noise", "cloning at low noise", "control: `bc` from the initial noise of the guided methods"),
    Method("best-of-n", "best of n", "Hansen-Estruch et al. 2023 (IDQL, arXiv 2304.10573): argmax", best=True),
    Method("qgpo", "QGPO", "Lu et al. 2023 (arXiv 2304.12824): contrastive energy prediction", energy="contrastive"),
    Method("qipo", "QIPO, diffusion", f"{QIPO} diffusion", policy="weighted"),
    Method("qipo-flow", "QIPO, flow", f"{QIPO} flow matching", policy="flow"),
    Method("iql", "IQL", "Kostrikov et al. 2022 (arXiv 2110.06169): advantage-weighted Gaussian", policy="gaussian"),
    Method("td3bc", "TD3+BC", "Fujimoto and Gu 2021 (arXiv 2106.06860)", policy="deterministic"),
    Method("diffusion-ql", "Diffusion-QL", "Wang et al. 2023 (arXiv 2208.06193)", policy="diffusion-q", best=True),
    Method(
        "aepo", "AEPO", "arXiv 2505.01822: energy network of the first-order closed form", energy="taylor", gate=False
    ),
    Method("aepo-shift", "AEPO, shift", "this study: first-order shift beta C grad Q(m), no network", shift="taylor"),
    Method("aepo-cubature", "AEPO, cubature shift", "this study: tilted mean of cubature points", shift="cubature"),
    Method("aepo-net", "AEPO, shift network", "this study: network of the cubature shift", energy="shift-cubature"),
    Method(
        "aepo-support", "AEPO, support", "this study: behavior samples, Bregman loss", energy="support", bregman=True
    ),
]
METHODS = {method.name: method for method in ROWS}
CORE = ("bc", "best-of-n", "aepo", "aepo-cubature", "aepo-net")
DATASET = "dataset"
NAMES = (DATASET, *METHODS)  # as rows of tables and figures, in their order


def energies(methods: Iterable[str]) -> list[str]:
    """The methods whose energy networks the given ones need, each once."""
    return list(dict.fromkeys(m for m in methods if METHODS[m].energy))


def policies(methods: Iterable[str]) -> list[str]:
    """Those of the given methods that have a policy network of their own."""
    return [m for m in methods if METHODS[m].policy]
