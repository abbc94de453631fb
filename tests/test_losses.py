"""Each loss against a plain loop over seeds and samples that is written from its formula."""

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import brentq

from aepo.core import guidance, losses, models
from aepo.core.networks import EnergyNet, NoiseNet, TwinQ, ValueNet, initialize

S, B, N, D = 3, 5, 4, 2
SEEDS = (0, 1, 2)
VP = models.VP


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def batch():
    t = torch.rand(S, B, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 0.9 + 0.05
    return {
        "state": normal(S, B, N),
        "action": normal(S, B, D, seed=1).clamp(-1, 1),
        "noise": normal(S, B, D, seed=2),
        "t": t,
    }


def made(kind, *sizes):
    return initialize(kind(S, *sizes).double(), SEEDS, "test")


def alone(network, row):
    return models.take_seeds(network, [row], S)


def gradients(network, loss):
    network.zero_grad()
    loss.sum().backward()
    return [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("of", ["velocity", "noise", "clean"])
def test_behavior_loss(batch, of):
    """The squared error of the noise, of the clean action (a_t - sigma eps) / alpha, of the velocity alpha eps - sigma a."""
    net = made(NoiseNet, N, D, 16, 2, VP)
    loss, _ = losses.behavior_loss(net, vp=VP, of=of, **batch)
    for s in range(S):
        single, total = alone(net, s), 0.0
        for b in range(B):
            alpha, sigma = VP.alpha(batch["t"][s, b]), VP.sigma(batch["t"][s, b])
            noisy = alpha * batch["action"][s, b] + sigma * batch["noise"][s, b]
            predicted = single(batch["state"][s, b].view(1, 1, N), noisy.view(1, 1, D), batch["t"][s, b].view(1, 1))
            noise, clean = predicted.flatten(), (noisy - sigma * predicted.flatten()) / alpha
            made_of = {"noise": noise, "clean": clean, "velocity": alpha * noise - sigma * clean}
            action, drawn = batch["action"][s, b], batch["noise"][s, b]
            wanted = {"noise": drawn, "clean": action, "velocity": alpha * drawn - sigma * action}
            total += (wanted[of] - made_of[of]).square().mean() / B
        assert loss[s].item() == pytest.approx(total.item(), rel=1e-10)


def test_a_seed_has_the_gradient_of_its_own_run(batch):
    net = made(NoiseNet, N, D, 16, 2, VP)
    stacked = gradients(net, losses.behavior_loss(net, vp=VP, **batch)[0])
    for s in range(S):
        single = alone(net, s).requires_grad_(True)
        own = gradients(single, losses.behavior_loss(single, vp=VP, **{k: v[s : s + 1] for k, v in batch.items()})[0])
        assert all(torch.allclose(a[s : s + 1], b, atol=1e-12) for a, b in zip(stacked, own, strict=True))


def test_value_loss(batch):
    net, q = made(ValueNet, N, 16, 2), normal(S, B, seed=3)
    loss, _ = losses.value_loss(net, batch["state"], q, expectile=0.8)
    value = net(batch["state"])
    for s in range(S):
        total = 0.0
        for b in range(B):
            u = (q[s, b] - value[s, b]).item()
            total += (0.2 if u < 0 else 0.8) * u**2 / B
        assert loss[s].item() == pytest.approx(total, rel=1e-10)


def test_expectile_loss_finds_the_known_expectile():
    """The 0.8-expectile e of a sample solves 0.8 E(x - e)+ = 0.2 E(e - x)+."""
    x = normal(2000).exp()
    known = brentq(lambda e: float(0.8 * (x - e).clamp(min=0).mean() - 0.2 * (e - x).clamp(min=0).mean()), 0, 10)
    e = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([e], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss, _ = losses.value_loss(lambda state: e.expand(1, len(x)), None, x.unsqueeze(0), 0.8)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert e.item() == pytest.approx(known, abs=1e-5)


def test_td_loss(batch):
    net, reward, next_value = made(TwinQ, N, D, 16, 2), normal(S, B, seed=3), normal(S, B, seed=4)
    terminated = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64).expand(S, B)
    loss, _ = losses.td_loss(net, batch["state"], batch["action"], reward, terminated, next_value, 0.9)
    for s in range(S):
        total, single = 0.0, alone(net, s)
        for b in range(B):
            target = reward[s, b] + (0.0 if b in (1, 3) else 0.9 * next_value[s, b])
            q = single(batch["state"][s, b].view(1, 1, N), batch["action"][s, b].view(1, 1, D)).flatten()
            total += ((q - target) ** 2).sum().item() / B
        assert loss[s].item() == pytest.approx(total, rel=1e-10)


def test_twin_minimum_is_the_smaller_of_two_different_networks(batch):
    net = made(TwinQ, N, D, 16, 2)
    both = net(batch["state"], batch["action"])
    assert not torch.allclose(both[0], both[1])
    assert torch.equal(net.minimum(batch["state"], batch["action"]), torch.minimum(both[0], both[1]))


@pytest.mark.parametrize("kind", ["taylor", "cubature"])
def test_energy_target(batch, kind):
    """The stacked target against its formula, sample by sample, with a Q that is not linear."""
    noise_net, table = made(NoiseNet, N, D, 16, 2, VP), torch.linspace(0.01, 0.3, 9, dtype=torch.float64).expand(S, 9)
    beta, bounds = 2.0, (torch.full((S, 1), -0.2, dtype=torch.float64), torch.full((S, 1), 0.4, dtype=torch.float64))
    weight = torch.tensor([0.7, -0.4], dtype=torch.float64)

    def q(state, action):
        state = state if state.ndim == 1 else state.repeat_interleave(action.shape[1] // state.shape[1], 1)
        return torch.tanh(action @ weight) + 0.1 * state[..., 0] * action[..., 1] ** 2

    noisy = losses.diffuse(batch["action"], batch["noise"], batch["t"], VP)
    behavior = SimpleNamespace(noise_net=noise_net, variance=table)
    moments = models.gaussian_posterior(behavior, batch["state"], noisy, batch["t"])
    q_function = models.advantage_at(SimpleNamespace(advantage=q), batch["state"])
    target = guidance.closed_form(kind, q_function, *moments, beta, bounds, -1.0, 1.0)
    clamped = 0
    for s in range(S):
        single = alone(noise_net, s)
        for b in range(B):
            state, t = batch["state"][s, b], batch["t"][s, b]
            eps = single(state.view(1, 1, N), noisy[s, b].view(1, 1, D), t.view(1, 1)).flatten()
            m = ((noisy[s, b] - VP.sigma(t) * eps) / VP.alpha(t)).clamp(-1, 1).detach().requires_grad_(True)
            position = (t - 1e-3) / (1 - 1e-3) * 8
            c = 0.01 + (0.3 - 0.01) * position / 8
            if kind == "taylor":
                value = q(state, m)
                g = torch.autograd.grad(value, m)[0]
                expected = beta * value + beta**2 / 2 * c * g.dot(g)
            else:
                r = (3 * c).sqrt()
                shifts = [(1 / 3, 0.0)] + [
                    (1 / 6, sign * r * torch.eye(2, dtype=torch.float64)[i]) for i in (0, 1) for sign in (1, -1)
                ]
                expected = torch.log(sum(w * torch.exp(beta * q(state, (m + z).clamp(-1, 1))) for w, z in shifts))
            limited = expected.clamp(-0.4, 0.8)
            clamped += int(limited != expected)
            assert target[s, b].item() == pytest.approx(limited.item(), abs=1e-9)
    assert 0 < clamped < S * B


def test_energy_loss_is_relative_to_the_targets_spread(batch):
    net = made(EnergyNet, N, D, 16, 2, VP)
    net.scale.fill_(3.0)
    target = normal(S, B, seed=7)
    loss, _ = losses.energy_loss(net, batch["state"], batch["action"], batch["t"], target)
    energy = net(batch["state"], batch["action"], batch["t"])
    assert torch.allclose(loss, ((energy - target) / 3).square().mean(1))


def test_energy_gradient_is_that_of_the_energy_and_gated(batch):
    net = made(EnergyNet, N, D, 16, 2, VP)
    action = batch["action"].clone().requires_grad_(True)
    own = torch.autograd.grad(net(batch["state"], action, batch["t"]).sum(), action)[0]
    assert torch.allclose(own, net.gradient(batch["state"], batch["action"], batch["t"]))
    step = 1e-6 * torch.tensor([1.0, 0.0], dtype=torch.float64)
    finite = (net(batch["state"], action + step, batch["t"]) - net(batch["state"], action - step, batch["t"])) / 2e-6
    assert torch.allclose(own[..., 0], finite, atol=1e-7)
    at_noise = net.gradient(batch["state"], batch["action"], torch.ones((), dtype=torch.float64))
    assert at_noise.abs().max() < 0.01


def test_bregman_loss_is_least_at_the_log_of_the_mean_exponential(batch):
    """A network that is constant in a_t, two targets of unequal exp: optimum log((e^0 + 3 e^4) / 4), where MSE says 3."""
    net = made(EnergyNet, N, D, 16, 2, VP)
    target = torch.tensor([0.0, 4.0, 4.0, 4.0], dtype=torch.float64).expand(S, 4)
    state, noisy, t = (batch[k][:, :4] for k in ("state", "action", "t"))

    def slope(value):
        energy = torch.full((S, 4), value, dtype=torch.float64, requires_grad=True)
        loss, _ = losses.bregman_loss(lambda *_: energy, state, noisy, t, target)
        return torch.autograd.grad(loss.sum(), energy)[0].sum(1)

    optimum = torch.logsumexp(target[0], -1).item() - math.log(4)
    assert brentq(lambda e: slope(e)[0].item(), -5, 10, xtol=1e-12) == pytest.approx(optimum, abs=1e-9)
    assert (slope(optimum + 50) > 0).all()
    assert torch.isfinite(slope(optimum + 1e6)).all()
    far = losses.bregman_loss(net, state, noisy, t, 1e6 * target)[0]
    assert torch.isfinite(far).all()
