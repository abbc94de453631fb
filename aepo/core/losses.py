"""Losses as pure functions: noise, times and batches are arguments; each returns `(loss per seed (S,), info)`.

A loss is a mean over the batch; the sum over seeds is what is differentiated, so that each seed's gradient is that
of its own separate run.
"""

import math

import torch
from torch import Tensor, nn

from aepo.core.networks import EnergyNet, NoiseNet, ShiftNet, TwinQ, ValueNet
from aepo.core.schedule import VPSchedule

Info = dict[str, Tensor]
LINEAR_BEYOND = 6.0
LOG_STD = (-5.0, 1.0)


def diffuse(action: Tensor, noise: Tensor, t: Tensor, vp: VPSchedule) -> Tensor:
    """Forward process a_t = alpha_t a + sigma_t eps: action, noise `(S, B, d)`, t `(S, B)`."""
    return vp.alpha(t).unsqueeze(-1) * action + vp.sigma(t).unsqueeze(-1) * noise


def behavior_loss(
    net: NoiseNet, state: Tensor, action: Tensor, noise: Tensor, t: Tensor, vp: VPSchedule, of: str = "velocity"
) -> tuple[Tensor, Info]:
    """Denoising loss, the squared error of "velocity" (|eps - eps_theta|^2 / alpha_t^2), "noise" or "clean" action."""
    by = vp.alpha(t) if of == "velocity" else vp.alpha(t) / vp.sigma(t) if of == "clean" else torch.ones_like(t)
    error = (noise - net(state, diffuse(action, noise, t, vp), t)) / by.unsqueeze(-1)
    loss = error.square().mean((-2, -1))
    return loss, {"loss": loss.detach()}


def value_loss(value_net: ValueNet, state: Tensor, q: Tensor, expectile: float) -> tuple[Tensor, Info]:
    """V(s) as the expectile of Q(s, a) over recorded actions: state `(S, B, n)`, q `(S, B)`.

    The loss is |expectile - 1(u < 0)| u^2 of u = Q - V (Kostrikov et al. 2022).
    """
    value = value_net(state)
    advantage = q - value
    weight = torch.abs(expectile - (advantage < 0).to(advantage))
    loss = (weight * advantage.square()).mean(-1)
    info = {"value_loss": loss, "value": value.mean(-1), "advantage_std": advantage.std(-1)}
    return loss, {key: x.detach() for key, x in info.items()}


def td_loss(
    q_net: TwinQ,
    state: Tensor,
    action: Tensor,
    reward: Tensor,
    terminated: Tensor,
    next_value: Tensor,
    discount: float,
    floor: Tensor | None = None,
) -> tuple[Tensor, Info]:
    """Twin temporal-difference error against r + discount (1 - terminated) V(s'); a truncation does not stop it.

    `floor` `(S, B)`: a lower bound of Q that the target does not fall below (`datasets.return_floor`).
    """
    target = reward + discount * (1 - terminated) * next_value
    if floor is not None:
        target = torch.maximum(target, floor)
    q = q_net(state, action)
    loss = (q - target).square().mean(-1).sum(0)
    return loss, {"td_loss": loss.detach(), "q": q.detach().mean((0, 2))}


def energy_loss(
    energy_net: EnergyNet, state: Tensor, noisy_action: Tensor, t: Tensor, target: Tensor, huber: bool = False
) -> tuple[Tensor, Info]:
    """Squared error of the energy network in units of its target's scale (1: no better than a constant).

    `huber`: twice the Huber loss, for targets that are functions of (s, a_t, t), as closed forms are: any loss has the same
    optimum, and this one is not ruled by the few states whose advantages are extreme.
    """
    size = ((energy_net(state, noisy_action, t) - target) / energy_net.scale).abs()
    loss = (torch.where(size < 1, size.square(), 2 * size - 1) if huber else size.square()).mean(-1)
    return loss, {"loss": loss.detach(), "target": target.mean(-1), "target_std": target.std(-1)}


def shift_loss(
    shift_net: ShiftNet, state: Tensor, noisy_action: Tensor, t: Tensor, target: Tensor
) -> tuple[Tensor, Info]:
    """mean |v - target|^2, target = shift / `ShiftNet.size` `(S, B, d)`; 1: no better than 0. Also by thirds of t."""
    error = (shift_net(state, noisy_action, t) - target).square().mean(-1)
    info = {"loss": error.mean(-1)}
    for name, low, high in (("early", 2 / 3, 1.01), ("middle", 1 / 3, 2 / 3), ("late", 0.0, 1 / 3)):
        inside = ((t >= low) & (t < high)).to(error)
        size = (inside * target.square().mean(-1)).sum(-1).clamp(min=1e-9)
        info[f"loss_{name}"] = (inside * error).sum(-1) / size
    return info["loss"], {key: value.detach() for key, value in info.items()}


def bregman_loss(
    energy_net: EnergyNet, state: Tensor, noisy_action: Tensor, t: Tensor, target: Tensor, shift: Tensor | None = None
) -> tuple[Tensor, Info]:
    """exp(E - s) - exp(T - s) (E - s) with any s that a_0 has no part in: its minimiser is E = log E[exp(T) | a_t].

    The Bregman divergence of y log y. Squared error fits the mean of T, which lies below where T is the logarithm of
    an unbiased estimate; and the weight exp(E - s) puts the accuracy where guided samples go. `shift` s `(S, B)`: about
    log E[exp(beta Q) | s], so that no state outweighs the others; None, where all states are one: the log of the batch's
    mean exp(T). Beyond 6 above s the exponential of E goes on as its tangent and T is cut. target `(S, B)`, finite.
    """
    if shift is None:
        shift = torch.logsumexp(target, -1, keepdim=True) - math.log(target.shape[-1])
    else:
        target = torch.minimum(target, shift + LINEAR_BEYOND)
    energy, weight = energy_net(state, noisy_action, t) - shift, torch.exp(target - shift)
    low = energy.clamp(max=LINEAR_BEYOND)
    loss = (torch.exp(low) * (1 + energy - low) - weight * energy).mean(-1)
    floor = (weight - weight * (target - shift)).mean(-1)
    info = {"loss": (loss - floor).detach(), "target": target.mean(-1), "target_std": target.std(-1)}
    return loss, info


def flow_loss(velocity_net: nn.Module, state: Tensor, action: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Info]:
    """Flow matching mean |u(s, a_t, t) - (eps - a)|^2 along a_t = (1 - t) a + t eps (Lipman et al. 2023)."""
    time = t.unsqueeze(-1)
    error = velocity_net(state, (1 - time) * action + time * noise, t) - (noise - action)
    loss = error.square().mean((-2, -1))
    return loss, {"loss": loss.detach()}


def awr_loss(
    mean: Tensor, log_std: Tensor, action: Tensor, advantage: Tensor, beta: float, cap: float
) -> tuple[Tensor, Info]:
    """Policy extraction of IQL: -min(exp(beta A), cap) log N(a; mean, diag std^2), in units of its mean weight.

    mean, action `(S, B, d)`, log_std `(S, 1, d)`, advantage `(S, B)`.
    """
    log_std = log_std.clamp(*LOG_STD)
    weight = torch.exp((beta * advantage).clamp(max=math.log(cap)))
    error = ((action - mean) * torch.exp(-log_std)).square()
    loss = (weight * (0.5 * error + log_std).sum(-1)).mean(-1) / weight.mean(-1)
    return loss, {"loss": loss.detach(), "weight": weight.mean(-1)}


def climbing_loss(cloning: Tensor, q: Tensor, weight: float) -> tuple[Tensor, Info]:
    """cloning `(S,)` - weight mean Q / mean |Q|, the size of Q held fixed: q = Q(s, a) `(S, B)` of the policy's actions.

    With |pi(s) - a|^2 it is TD3+BC (Fujimoto and Gu 2021), with `behavior_loss` Diffusion-QL (Wang et al. 2023).
    """
    gain = weight * q.mean(-1) / q.detach().abs().mean(-1).clamp(min=1e-6)
    return cloning - gain, {"cloning": cloning.detach(), "policy_q": q.detach().mean(-1)}


def in_support_value(q: Tensor, temperature: float) -> Tensor:
    """Softmax backup of QGPO over M behavior samples: sum_j softmax(q_j / (temperature std))_j q_j, `(S, B, M)` -> `(S, B)`.

    std: the spread of Q among the samples of one state, over the batch, so that the temperature means the same anywhere.
    """
    spread = (q - q.mean(-1, keepdim=True)).square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1e-6)
    return (torch.softmax(q / (temperature * spread), -1) * q).sum(-1)


def contrastive_loss(
    energy_net: EnergyNet, state: Tensor, support: Tensor, noise: Tensor, t: Tensor, scaled_q: Tensor, vp: VPSchedule
) -> tuple[Tensor, Info]:
    """Contrastive energy prediction (Lu et al. 2023): cross-entropy of softmax(beta Q_j) under softmax(E(a_t^j)).

    state `(S, B, n)`, support and noise `(S, B, M, d)`, t `(S, B)` shared by the M noised actions of a state,
    scaled_q = beta Q of the support `(S, B, M)`.
    """
    seeds, batch, count, d = support.shape
    times = t.repeat_interleave(count, 1)
    noisy = diffuse(support.reshape(seeds, -1, d), noise.reshape(seeds, -1, d), times, vp)
    energy = energy_net(state.repeat_interleave(count, 1), noisy, times).view(seeds, batch, count)
    target = torch.softmax(scaled_q, -1)
    loss = -(target * torch.log_softmax(energy, -1)).sum(-1).mean(-1)
    entropy = -(target * torch.log_softmax(scaled_q, -1)).sum(-1).mean(-1)
    return loss, {"loss": loss.detach(), "excess": (loss - entropy).detach()}
