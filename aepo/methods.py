"""The methods of methods.yaml. docs/methods.md says what each source leaves open and what was chosen."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Method:
    """One policy, by what makes its actions and what it shares with the others.

    `energy`: what its network learns: a closed form of the energy (`guidance.KINDS`), "support", "clean" (beta Q of the
    recorded action), "contrastive"; or of the shift, "shift-taylor", "shift-cubature". `bregman`: by the Bregman loss, whose
    optimum is log E[exp(target)]. `gate`: its guidance vanishes at pure noise, by alpha_t or "jacobian" (`EnergyNet`).
    `shift`: guided by a closed form of the shift ("taylor", "cubature"), no network; `trusted`: followed where the twin
    critics agree. `policy`: what its own network learns (`policies.MODELS`), which methods of the kind
    "resampled" share. `best`: of several samples it takes the best by Q.
    """

    name: str
    label: str
    source: str
    energy: str | None = None
    bregman: bool = False
    gate: bool | str = True
    shift: str | None = None
    trusted: bool = False
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
        return self.guided or self.policy in ("weighted", "flow", "gaussian", "resampled")


TABLE = yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text())
METHODS = {name: Method(name, **row) for name, row in TABLE.items()}
CLONING = ("bc", "bc-low-noise")  # which needs no critic
CORE = ("bc", "best-of-n", "aepo", "aepo-cubature", "aepo-net", "aepo-weighted")
DATASET = "dataset"
NAMES = (DATASET, *METHODS)  # as rows of tables and figures, in their order


def energies(methods: Iterable[str]) -> list[str]:
    """The methods whose energy networks the given ones need, each once."""
    return list(dict.fromkeys(m for m in methods if METHODS[m].energy))


def policies(methods: Iterable[str]) -> list[str]:
    """Those of the given methods that have a policy network of their own."""
    return [m for m in methods if METHODS[m].policy]
