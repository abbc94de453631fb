"""The methods that the study compares: one table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One policy, by what makes its actions and what it shares with the others.

    `energy`: what its energy network learns from (`energies.target`, or the contrastive loss), `bregman`: by the Bregman
    loss, whose optimum is log E[exp(target)], instead of squared error. `closed`: guided by the gradient of a closed form
    (`models.CLOSED_FORMS`), computed where it is needed, no network. `policy`: what its own network learns
    (`models.MODELS`). `pick`: of several samples it takes the "best" by Q, or draws one by "softmax" of beta Q. `critic`:
    how the shared critic that it uses was trained. `shares`: the method whose energy network it uses. `gate`: its
    guidance vanishes at pure noise. `clamp`: its target stays within beta times the range of recorded advantages.
    `details`: what the source says, what it leaves open, what was chosen here.
    """

    name: str
    label: str
    source: str
    energy: str | None = None
    bregman: bool = False
    closed: str | None = None
    policy: str | None = None
    pick: str | None = None
    critic: str = "expectile"
    shares: str | None = None
    gate: bool = True
    clamp: bool = True
    details: tuple[str, ...] = ()

    @property
    def guided(self) -> bool:
        """Whether a guidance scale applies."""
        return self.closed is not None or self.energy is not None

    @property
    def tempered(self) -> bool:
        """Whether an inverse temperature beta applies."""
        return self.guided or self.policy in ("weighted", "flow", "gaussian") or self.pick == "softmax"


CONTRASTIVE = "Lu et al. 2023 (arXiv 2304.12824): contrastive energy prediction"
ROWS = [
    Method(
        "bc",
        "diffusion cloning",
        "guidance scale 0",
        details=(
            "DPM-Solver++ in 10 steps of log-SNR instead of the 15 to 50 of published codes; 02 shows the error.",
        ),
    ),
    Method(
        "best-of-n",
        "best of n",
        "Hansen-Estruch et al. 2023 (IDQL, arXiv 2304.10573): argmax",
        pick="best",
        details=(
            "16 candidates, 64 in point mazes; IDQL tunes 32 to 128 by task.",
            "The critic is the shared one, whose V is of expectile .5 (Maze2D), .7 (dense rewards, own tasks), .8 "
            "(PointMaze), .9 (AntMaze).",
        ),
    ),
    Method(
        "best-of-n-softmax",
        "best of n, softmax",
        "Chen et al. 2023 (SfBC, arXiv 2209.14548)",
        pick="softmax",
        details=(
            "16 candidates, 64 in point mazes, one drawn with probability softmax(beta Q); SfBC plans its critic over "
            "returns, here it is the shared one.",
        ),
    ),
    Method(
        "qgpo",
        "QGPO",
        CONTRASTIVE,
        energy="contrastive",
        details=(
            "The loss, cross-entropy over the M noised actions of one state and one t, is the paper's.",
            "Its critic is the shared expectile critic; `qgpo-softmax` has the paper's in-support softmax critic.",
            "The energy network is gated by alpha_t; the public code's is not.",
        ),
    ),
    Method(
        "qgpo-softmax",
        "QGPO, own critic",
        CONTRASTIVE + " with its in-support softmax critic",
        energy="contrastive",
        critic="softmax",
        details=(
            "Backup r + gamma sum_j softmax(Q_j/tau)_j Q_j over behavior samples at s'. The paper's temperature is in units "
            "of reward; here tau is in units of the spread of Q among the samples, which no task has to tune.",
            "V, needed to normalise Q, regresses on the same backup.",
        ),
    ),
    Method(
        "qipo",
        "QIPO, diffusion",
        "Zhang et al. 2025 (arXiv 2503.04975): energy-weighted diffusion",
        policy="weighted",
        details=(
            "A support action is drawn with the probability softmax(beta Q) that the paper's loss weighs it by: the same "
            "expected gradient from one forward pass instead of M.",
            "Renewal: the steps are split into rounds; each draws new support from the policy so far and tilts it by "
            "beta/rounds, so that all rounds together tilt the behavior by beta, as every other method does.",
            "Starts from the behavior model.",
        ),
    ),
    Method(
        "qipo-flow",
        "QIPO, flow",
        "Zhang et al. 2025 (arXiv 2503.04975): energy-weighted flow matching",
        policy="flow",
        details=(
            "Optimal-transport path a_t = (1 - t) a + t eps, midpoint steps with as many evaluations as the others have.",
            "Weights and rounds as in `qipo`; the first round starts from nothing, on support of the diffusion model, the "
            "next from the round before.",
        ),
    ),
    Method(
        "iql",
        "IQL",
        "Kostrikov et al. 2022 (arXiv 2110.06169): advantage-weighted Gaussian",
        policy="gaussian",
        details=(
            "Advantages are (Q - V)/std, so that beta means the same on every task; the paper's 3 or 10 are in raw units.",
            "Weights are cut at 100, as in the paper; the loss is divided by the batch's mean weight.",
            "Mean in the box by tanh, one std a dimension for all states; evaluation takes the mean.",
        ),
    ),
    Method(
        "td3bc",
        "TD3+BC",
        "Fujimoto and Gu 2021 (arXiv 2106.06860)",
        policy="deterministic",
        details=(
            "Its own twin critic with a smoothed target policy, as in the paper; alpha = 2.5, 5 in point mazes.",
            "Policy and critic step together (the paper: every second step), with the cosine decay of all trainings here.",
            "LayerNorm in policy and critic, which the paper's code lacks and later ones add.",
        ),
    ),
    Method(
        "diffusion-ql",
        "Diffusion-QL",
        "Wang et al. 2023 (arXiv 2208.06193)",
        policy="diffusion-q",
        pick="best",
        details=(
            "Cloning loss minus eta Q / mean |Q| of actions sampled through 5 differentiable solver steps (the paper: 5 "
            "ancestral steps); eta = 1, where the paper tunes it by task.",
            "Evaluation takes the best of 16 samples (64 in point mazes) by its own critic; the paper: softmax over 50.",
        ),
    ),
    Method(
        "direct",
        "direct gradient",
        "gradient of beta Q at the posterior mean, no network",
        closed="point",
        details=("Chung et al. 2023 (arXiv 2209.14687) guide like this by a likelihood; here by Q.",),
    ),
    Method(
        "aepo-direct",
        "AEPO, direct",
        "this study: gradient of the closed form itself, by cubature, at sampling; no energy network",
        closed="cubature",
        details=(
            "A network that learns the closed form is its weakest part in short trainings; its gradient costs one backward "
            "pass through behavior model and critic a solver step, and no training.",
            "Not clamped: the clamp's gradient is 0, and cubature stays within the range of Q by itself.",
        ),
    ),
    Method(
        "aepo-direct-1",
        "AEPO, direct, first order",
        "this study: gradient of the paper's closed form at sampling; no energy network",
        closed="taylor",
        details=("As `aepo-direct`, with the first-order form: its gradient needs the Hessian of Q times one vector.",),
    ),
    Method(
        "aepo-direct-softmax",
        "AEPO, direct, in-support critic",
        "this study: `aepo-direct` with the in-support softmax critic of QGPO",
        closed="cubature",
        critic="softmax",
        details=(
            "As `aepo-direct`. The critic backs up actions that the behavior model proposes, 8 at each next state, so that "
            "its targets ask it about the same kind of action as the guidance does.",
        ),
    ),
    Method(
        "mean-q",
        "mean Q",
        "regression of beta Q(a_0) on a_t",
        energy="clean",
        details=("Its minimiser is E[beta Q | a_t], not the log of a mean: right to first order in beta.",),
    ),
    Method(
        "aepo",
        "AEPO",
        "arXiv 2505.01822: first-order closed form",
        energy="taylor",
        gate=False,
        details=(
            "Reference point: the posterior mean. The target is clamped to beta times the range of recorded advantages.",
            "Covariance: isotropic c_t from the residual of the posterior mean.",
            "Not gated by alpha_t, unlike the networks that learn from samples (`mean-q`, `aepo-support`, `qgpo`): the gate "
            "makes the guidance right near pure noise; without it returns were better where settings were chosen, and are "
            "worse on the other tasks (`aepo-gated`).",
            "The network learns what is left of the target after beta Q of the behavior's mean action: what depends on the "
            "state alone does not guide, and would take up the network.",
            "Huber loss, on a scale of the target's middle half: a closed form is a function of its inputs, so that the "
            "optimum is the same, and the heavy tail of advantages does not rule it.",
            "The paper's own hyperparameters were not consulted.",
        ),
    ),
    Method(
        "aepo-2",
        "AEPO, second order",
        "arXiv 2505.01822 with the Hessian of Q",
        energy="taylor-2",
        gate=False,
        details=("Positive curvature is dropped: with it the closed form is infinite or worse than first order.",),
    ),
    Method(
        "aepo-gated",
        "AEPO, gated",
        "ablation: E = c(s,t) + alpha_t h(s,a_t,t)",
        energy="taylor",
        details=("As `aepo`, with the factor alpha_t that makes the guidance vanish at pure noise.",),
    ),
    Method(
        "aepo-unclamped",
        "AEPO, no clamp",
        "ablation: the target as it comes",
        energy="taylor",
        gate=False,
        clamp=False,
        details=("As `aepo`, the target not clamped.",),
    ),
    Method(
        "aepo-cubature",
        "AEPO, cubature",
        "this study: cubature over the same Gaussian",
        energy="cubature",
        gate=False,
        details=(
            "2d points of radius sqrt(d) (for d <= 2 the unscented 2d + 1), clipped to the box; clamped as `aepo`.",
        ),
    ),
    Method(
        "aepo-support",
        "AEPO, support",
        "this study: self-normalised estimate over behavior samples, Bregman loss",
        energy="support",
        bregman=True,
        details=(
            "16 samples at each of 16,384 states; with the recorded action they are the candidates, and the noised action "
            "is one of them, drawn at random.",
            "The network learns the difference to log E[exp(beta Q) | s], since a term in s alone does not guide.",
        ),
    ),
    Method(
        "aepo-support-softmax",
        "AEPO, support, in-support critic",
        "this study: `aepo-support` with the in-support softmax critic of QGPO",
        energy="support",
        bregman=True,
        critic="softmax",
        details=("As `aepo-support`; the critic is that of `aepo-direct-softmax` and `qgpo-softmax`.",),
    ),
    Method(
        "aepo-best",
        "AEPO, support, best of n",
        "this study: the best by Q of several samples of aepo-support",
        energy="support",
        bregman=True,
        pick="best",
        shares="aepo-support",
        details=(
            "The candidates of `best-of-n` (16, 64 in point mazes), guided by the energy network of `aepo-support` from all "
            "of the standard noise: guidance moves the proposals, Q picks among them. The guidance scale is chosen anew, by "
            "the same rule with that noise.",
        ),
    ),
    Method(
        "exp-q",
        "exp Q",
        "this study: beta Q(a_0) under the Bregman loss",
        energy="clean",
        bregman=True,
        details=(
            "The exponents are shifted by the network's own energy at pure noise, state by state, so that no state "
            "outweighs the others.",
        ),
    ),
]
METHODS = {method.name: method for method in ROWS}
CORE = ("bc", "best-of-n", "aepo", "aepo-cubature", "aepo-direct")
DATASET = "dataset"
NAMES = (DATASET, *METHODS)  # as rows of tables and figures, in their order


def energies(methods: Iterable[str]) -> list[str]:
    """The methods whose energy networks the given ones need, each once."""
    return list(dict.fromkeys(METHODS[m].shares or m for m in methods if METHODS[m].energy))


def policies(methods: Iterable[str]) -> list[str]:
    """Those of the given methods that have a policy network of their own."""
    return [m for m in methods if METHODS[m].policy]


def page() -> str:
    """The table as Markdown, for docs/methods.md: what each method's source says, leaves open, and what was chosen here."""
    lines = [
        "# Methods and implementation details",
        "",
        "Written by `aepo methods --details` from `aepo/methods.py`. All methods share the data, the behavior model, the",
        "expectile critic, batches, sampler and evaluation unless an item says otherwise. Q means (Q - V)/std(Q - V)",
        "everywhere, so that an inverse temperature means the same on every task. No target of any critic falls below the",
        "return that followed in the data (`return_floor` in `aepo/datasets.py`): exact where dynamics are deterministic,",
        "as in all tasks here. Guided samples start from a quarter of the standard noise (`noise_scale` in",
        "`aepo/settings.py`), those of `bc`, of a policy of its own, and those that are picked from start from all of it.",
        "Papers were consulted through their abstracts and public code; what follows are our choices.",
    ]
    for method in ROWS:
        lines += ["", f"## `{method.name}`: {method.label}", "", f"Source: {method.source}.", ""]
        lines += [f"{i}. {detail}" for i, detail in enumerate(method.details, 1)] or [
            "Nothing is left open by the source."
        ]
    return "\n".join(lines) + "\n"
