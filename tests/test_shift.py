"""Guidance in the space of clean actions: the identity behind it, its closed forms, and the sampler that takes them."""

import pytest
import torch

from aepo.core import guidance, networks, posterior, sampler
from aepo.core.schedule import VPSchedule
from aepo.exact import mixtures

VP = VPSchedule()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bent(action):
    """A Q that is not linear, with values in [-2, 2]."""
    return 2 * torch.sin(2 * action[..., 0] + action[..., 1])


@pytest.mark.parametrize("name", mixtures.MIXTURES)
@pytest.mark.parametrize("t", [1e-3, 0.1, 0.4, 0.7, 1.0])
def test_guidance_is_the_difference_of_two_means(name, t):
    """grad E* = alpha/sigma^2 (E_tilted[a_0] - E[a_0]): energy by autograd on one rule, the two means on another."""
    mixture, t = mixtures.toy_mixture(name), torch.tensor(t, dtype=torch.float64)
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    noisy = alpha * mixture.sample(6, torch.Generator().manual_seed(1)) + sigma * normal(6, 2)
    gradient = mixtures.guidance(lambda a: mixtures.grid_energy(mixture, bent, a, t, VP, 1.5, points=121), noisy)
    shift = mixtures.grid_shift(mixture, bent, noisy, t, VP, 1.5, points=141, reach=8.5)
    assert (sigma**2 / alpha * gradient - shift).abs().max() < 1e-9
    assert shift.abs().max() < 2


@pytest.mark.parametrize("d", [1, 2, 6, 24])
@pytest.mark.parametrize("t", [1e-3, 0.3, 1.0])
def test_first_order_is_exact_for_gaussian_data_and_linear_q(d, t):
    root, slope, beta = normal(d, d, seed=d), normal(d, seed=9), 2.5
    data = mixtures.Mixture(torch.ones(1).double(), normal(1, d), (root @ root.T / d + 0.1 * torch.eye(d))[None])
    t, noisy = torch.tensor(t, dtype=torch.float64), normal(5, d, seed=3)
    exact = VP.sigma(t) ** 2 / VP.alpha(t) * (data.tilted(slope, beta).score(noisy, t, VP) - data.score(noisy, t, VP))
    covariance = data.posterior(noisy, t, VP).covariance
    assert (guidance.taylor_shift(slope.expand(5, d), covariance, beta) - exact).abs().max() < 1e-8
    c = 0.3
    linear = guidance.cubature_shift(lambda a: a @ slope, noisy, torch.full((5,), c).double(), 1e-5)
    assert torch.allclose(linear, 1e-5 * c * slope.expand(5, d), atol=1e-8), "cubature to first order in beta"


@pytest.mark.parametrize("t", [0.3, 0.6, 1.0])
def test_the_support_shift_converges(t):
    mixture, beta, t = mixtures.toy_mixture("wide"), 1.5, torch.tensor(t, dtype=torch.float64)
    support = mixture.sample(60_000, torch.Generator().manual_seed(0))
    noisy = VP.alpha(t) * support[:5] + VP.sigma(t) * normal(5, 2)
    shift = guidance.support_shift(bent(support).expand(5, -1), support.expand(5, -1, -1), noisy, t, VP, beta)
    assert (shift - mixtures.grid_shift(mixture, bent, noisy, t, VP, beta)).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_nothing_gives_nan_and_beta_0_gives_0(dtype, beta, scale):
    g = torch.Generator().manual_seed(0)
    mean, noisy = (torch.randn(7, 2, generator=g, dtype=dtype) for _ in range(2))
    support = torch.rand(7, 5, 2, generator=g, dtype=dtype)
    singular = torch.diag(torch.tensor([0.5, 0.0], dtype=dtype)).expand(7, 2, 2)
    shifts = [
        guidance.support_shift(scale * support[:, :n, 0], support[:, :n], noisy, torch.tensor(t, dtype=dtype), VP, beta)
        for n in (1, 5)
        for t in (1e-3, 0.5, 1.0)
    ]
    for covariance in (torch.zeros(7, dtype=dtype), torch.full((7, 2), 0.3, dtype=dtype), singular):
        shifts.append(guidance.taylor_shift(scale * torch.ones_like(mean), covariance, beta))
        shifts.append(guidance.cubature_shift(lambda a: scale * a[..., 1].tanh(), mean, covariance, beta, -1.0, 1.0))
    for shift in shifts:
        assert shift.shape == (7, 2)
        assert torch.isfinite(shift).all()
        assert beta > 0 or (shift == 0).all()
    with pytest.raises(ValueError, match="beta must be a finite number"):
        guidance.taylor_shift(mean, singular, -1.0)


def test_the_mean_is_clipped_before_the_shift_and_after_it():
    """A predicted action of 14 with shift -.5 in a box of 1 is .5; with shift +.5 it is 1."""
    seen = []
    for by in (-0.5, 0.5):
        sampler.sample(
            lambda a, t: (a - VP.alpha(t) * 14) / VP.sigma(t),
            torch.zeros(1, 1, dtype=torch.float64),
            VP,
            steps=1,
            shift=lambda a, t, mean, by=by: torch.full_like(mean, by),
            low=-1.0,
            high=1.0,
            callback=lambda i, t, a, predicted: seen.append(predicted.item()),
        )
    assert seen == [0.5, 1.0]
    with pytest.raises(ValueError, match="not both"):
        sampler.sample(lambda a, t: a, torch.zeros(1, 1), VP, energy_gradient=lambda a, t: a, shift=lambda a, t, m: a)


def test_without_a_scale_no_shift_is_asked_for():
    noise = normal(4, 2)
    plain = sampler.sample(lambda a, t: 0.5 * a, noise, VP)
    guided = sampler.sample(lambda a, t: 0.5 * a, noise, VP, shift=lambda *_: pytest.fail("asked"), guidance_scale=0.0)
    assert torch.equal(plain, guided)


def test_exact_score_and_exact_shift_sample_the_target():
    """Mixture and linear Q: the target is a mixture; energy distance at most .002 after 15 steps from all of the noise."""
    mixture, slope, beta = mixtures.toy_mixture("wide"), torch.tensor([2.0, 1.0], dtype=torch.float64), 1.5
    target = mixture.tilted(slope, beta)

    def shift(noisy, t, mean):
        score = target.score(noisy, t, VP) - mixture.score(noisy, t, VP)
        return VP.sigma(t) ** 2 / VP.alpha(t) * score

    drawn = sampler.sample(lambda a, t: mixture.noise(a, t, VP), normal(8_000, 2), VP, steps=15, shift=shift)
    exact = target.sample(8_000, torch.Generator().manual_seed(5))
    assert mixtures.energy_distance(drawn, exact) < 0.002
    assert mixtures.energy_distance(drawn, mixture.sample(8_000, torch.Generator().manual_seed(6))) > 0.02


def test_the_guided_prediction_is_the_tilted_mean():
    """m + shift for a Gaussian: the posterior mean of the tilted data at the same noisy action."""
    mean, variance, slope = torch.tensor([0.1, -0.2]).double(), 0.05, torch.tensor([2.0, -1.5]).double()
    t, noisy = torch.tensor(0.5).double(), normal(6, 2)
    data = mixtures.Mixture(torch.ones(1).double(), mean[None], variance * torch.eye(2).double()[None])
    m = posterior.mean(noisy, data.noise(noisy, t, VP), t, VP)
    guided = m + guidance.taylor_shift(slope.expand(6, 2), data.posterior(noisy, t, VP).covariance, 1.0)
    assert torch.allclose(guided, data.tilted(slope, 1.0).posterior(noisy, t, VP).mean, atol=1e-10)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_a_shift_network_is_its_size_times_what_it_regresses(power):
    """shift = scale c_t^power v; 1/2 is what networks stored before had."""
    net = networks.initialize(networks.ShiftNet(2, 1, 2, 8, 2, 33, power), (0, 1), "x").double()
    net.variance.copy_(torch.linspace(1e-4, 0.3, 33).double().expand(2, -1))
    net.scale.copy_(torch.tensor([[2.0], [3.0]]))
    state, noisy, t = normal(2, 5, 1), normal(2, 5, 2), torch.tensor([[0.1, 0.3, 0.5, 0.7, 0.9]] * 2).double()
    size = net.scale * posterior.isotropic_variance(net.variance, t) ** power
    assert torch.equal(net.shift(state, noisy, t), size.unsqueeze(-1) * net(state, noisy, t))
