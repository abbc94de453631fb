"""From a state to an action: what makes samples, what guides them, and how one of several is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, cast

import torch
from torch import Tensor

from aepo.core.models import ActionModel, Behavior, ClosedForm, ClosedShift, Critic, Guide
from aepo.learners.capture import CapturedCalls
from aepo.learners.policies import Trained
from aepo.methods import Method

AGREED = 32.0  # .97 / .03: the twin critics correlate at .97 over actions (`policies.agreement`)
FARTHEST = 1e6  # standard deviations from the mean that a network is shown: beyond, its numbers overflow


@dataclass(frozen=True)
class Acting:
    """How a method acts, as the manifest's entry of an evaluation holds it.

    `guidance_scale`: a number, or one a seed. `noise_scale`: factor on the initial noise. `form` in place of the method's
    closed form, `pick`, `differentiated`, `trust`, `t_start`: as the settings' of the same names.
    """

    beta: float
    guidance_scale: float | Sequence[float]
    solver_steps: int
    candidates: int = 1
    noise_scale: float = 1.0
    t_start: float = 1.0
    form: str | None = None
    pick: str = "best"
    differentiated: bool = False
    trust: float | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Self:
        """What an entry says of it, among other things."""
        return cls(**{field.name: entry[field.name] for field in fields(cls) if field.name in entry})


@dataclass
class Actor:
    """S policies side by side: what makes actions, what guides it, and how one of several samples is taken.

    `guidance_scale`: a number, or `(S, 1, 1)` for one value a row. `candidates`: samples a state, one of which is taken by
    the critic's advantage: the best, or where `temperature` is above 0 one drawn by softmax(advantage / temperature).
    """

    behavior: ActionModel
    critic: Critic | Trained | None
    guide: Guide | None
    guidance_scale: float | Tensor
    solver_steps: int
    candidates: int
    temperature: float = 0.0
    noise_scale: float = 1.0
    t_start: float = 1.0

    @property
    def draws(self) -> int:
        """Rows of initial noise a state: one a candidate, and one more where the pick is drawn."""
        return self.candidates + (self.candidates > 1 and self.temperature > 0)

    def __post_init__(self):
        self._captured = CapturedCalls(self._act, "the sampler")

    @torch.no_grad()
    def act(self, state: Tensor, noise: Tensor) -> Tensor:
        """Environment actions `(S, B, d)` for raw states `(S, B, n)` and initial noise `(S, B, draws, d)`."""
        return self._captured(state, noise) if state.device.type == "cuda" else self._act(state, noise)

    def _act(self, state: Tensor, noise: Tensor) -> Tensor:
        return self.behavior.unscale(self.propose(self.behavior.standardize(state).clamp(-FARTHEST, FARTHEST), noise))

    @torch.no_grad()
    def propose(self, state: Tensor, noise: Tensor) -> Tensor:
        """As `act`, for standardised states, in [-1, 1]."""
        seeds, batch, _, d = noise.shape
        count = self.candidates
        repeated = state.repeat_interleave(count, 1) if count > 1 else state
        start = self.noise_scale * noise[:, :, :count].reshape(seeds, batch * count, d)
        how = self.solver_steps, self.guide, self.guidance_scale, self.t_start
        action = self.behavior.sample(repeated, start, *how)
        if count == 1:
            return action
        score = cast(Critic, self.critic).advantage(state, action).view(seeds, batch, count)
        taken = score.argmax(-1)
        if self.draws != count:  # drawn by softmax(score / temperature) from one more normal number
            chance = torch.softmax(score / self.temperature, -1).cumsum(-1)[..., :-1]
            taken = (torch.special.ndtr(noise[:, :, count, :1]) > chance).sum(-1)
        taken = taken[..., None, None].expand(-1, -1, 1, d)
        return action.view(seeds, batch, count, d).gather(2, taken).squeeze(2)


def make_actor(
    method: Method, behavior: ActionModel, critic: Critic | Trained | None, guide: Guide | None, how: Acting
) -> Actor:
    """The actor of a method of `METHODS`: what it does not use is left out. `behavior`: its own policy where it has one."""
    if method.energy and guide is None:
        raise ValueError(f"method {method.name!r} needs its energy network")
    if method.shift:
        beta: float | Tensor = how.beta
        if method.trusted and not how.differentiated:
            if how.trust is None:
                raise ValueError(f"method {method.name!r} needs trust: how far to follow the critic")
            beta = how.trust * (cast(Tensor, behavior.agreement) >= AGREED)
        closed = ClosedForm if how.differentiated else ClosedShift
        acts = not isinstance(beta, Tensor) or bool(beta.any())
        form = how.form if how.differentiated or how.form in ("taylor", "cubature") else None  # else a network's alone
        guide = closed(form or method.shift, cast(Behavior, behavior), cast(Critic, critic), beta) if acts else None
    guidance_scale: float | Sequence[float] | Tensor = how.guidance_scale if method.guided else 0.0
    if isinstance(guidance_scale, Sequence):
        guidance_scale = torch.tensor(guidance_scale, device=behavior.low.device).view(-1, 1, 1)
    guide, best = guide if method.guided else None, method.best
    candidates = how.candidates if best else 1
    temperature = 1 / (how.beta or 3.0) if best and how.pick == "softmax" else 0.0
    sampling = guidance_scale, how.solver_steps, candidates, temperature, how.noise_scale, how.t_start
    return Actor(behavior, critic if best else None, guide, *sampling)
