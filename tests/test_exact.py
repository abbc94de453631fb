"""The exact testbed against autograd, Tweedie, brute force and known distances, in float64."""

import math

import pytest
import torch

from aepo.core import guidance, posterior, sampler
from aepo.core.schedule import VPSchedule
from aepo.exact import mixtures
from aepo.exact.mixtures import Mixture

VP = VPSchedule()
TIMES = [1e-3, 0.05, 0.3, 0.7, 1.0]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def spd(*shape, seed=0):
    root = normal(*shape, shape[-1], seed=seed)
    return root @ root.mT / shape[-1] + 0.1 * torch.eye(shape[-1], dtype=torch.float64)


def mixture(d, count=3, scale=0.5):
    weights = torch.arange(1, count + 1, dtype=torch.float64)
    return Mixture(weights / weights.sum(), scale * normal(count, d, seed=1), scale**2 * spd(count, d, seed=2))


def noisy(mix, t, count=16, seed=3):
    t = torch.tensor(t, dtype=torch.float64)
    a = mix.sample(count, generator(seed))
    return VP.alpha(t) * a + VP.sigma(t) * normal(*a.shape, seed=seed + 1), t


def bounded(a):
    """A nonlinear Q with values in [-1, 1]."""
    return torch.sin(3 * a[..., 0] + 1) * torch.cos(2 * a[..., 1])


MIXTURES = {name: mixtures.toy_mixture(name) for name in mixtures.MIXTURES} | {f"d{d}": mixture(d) for d in (1, 2, 6)}


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("name", MIXTURES)
def test_score_mean_and_covariance(name, t):
    """Score by autograd of log mu_t, posterior mean and covariance by Tweedie's formulas."""
    mix = MIXTURES[name]
    a_t, t = noisy(mix, t)
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    score, post = mix.score(a_t, t, VP), mix.posterior(a_t, t, VP)
    assert (score - mixtures.guidance(mix.noised(t, VP).log_density, a_t)).abs().max() < 1e-9
    assert (post.mean - posterior.mean(a_t, mix.noise(a_t, t, VP), t, VP)).abs().max() < 1e-9
    jacobian = torch.autograd.functional.jacobian(lambda a: mix.score(a, t, VP).sum(0), a_t).movedim(1, 0)
    identity = torch.eye(a_t.shape[-1], dtype=torch.float64)
    tweedie = sigma**2 / alpha**2 * (identity + sigma**2 * jacobian)
    assert (post.covariance - tweedie).abs().max() < 1e-9 / alpha**2


def test_a_time_for_each_action_equals_one_time_after_another():
    mix, a_t, times = MIXTURES["wide"], normal(5, 2), torch.tensor(TIMES, dtype=torch.float64)
    slope, hessian = normal(2, seed=7), -spd(2, seed=8)
    for function in (
        lambda a, t: mix.noise(a, t, VP),
        lambda a, t: mix.posterior(a, t, VP).covariance,
        lambda a, t: mixtures.linear_energy(mix, slope, 0.1, a, t, VP, 2.0),
        lambda a, t: mixtures.quadratic_energy(mix, hessian, slope, 0.1, a, t, VP, 2.0),
        lambda a, t: mixtures.grid_energy(mix, bounded, a, t, VP, 2.0, points=31),
    ):
        one_by_one = torch.stack([function(a, t) for a, t in zip(a_t, times, strict=True)])
        assert torch.allclose(function(a_t, times), one_by_one, atol=1e-12)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("beta", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("name", ["wide", "ring"])
def test_closed_forms_equal_the_grid(name, beta, t):
    mix = MIXTURES[name]
    a_t, t = noisy(mix, t, count=2)
    slope, hessian = torch.tensor([1.3, -0.7], dtype=torch.float64), -spd(2, seed=5)
    for curvature in (torch.zeros(2, 2, dtype=torch.float64), hessian):
        grid = mixtures.grid_energy(
            mix, lambda a, h=curvature: 0.3 + a @ slope + (a @ h * a).sum(-1) / 2, a_t, t, VP, beta
        )
        quadratic = mixtures.quadratic_energy(mix, curvature, slope, 0.3, a_t, t, VP, beta)
        assert ((grid - quadratic).abs() < 1e-8 * (1 + grid.abs())).all()
    linear = mixtures.linear_energy(mix, slope, 0.3, a_t, t, VP, beta)
    flat = mixtures.quadratic_energy(mix, torch.zeros(2, 2).double(), slope, 0.3, a_t, t, VP, beta)
    assert torch.allclose(linear, flat, rtol=1e-12)


def test_energy_is_infinite_where_the_expectation_is():
    mix, t = mixture(2), torch.tensor(0.9, dtype=torch.float64)
    arguments = (normal(2), 0.0, normal(4, 2), t, VP)
    identity = torch.eye(2, dtype=torch.float64)
    assert (mixtures.quadratic_energy(mix, identity, *arguments, 100.0) == math.inf).all()
    assert mixtures.quadratic_energy(mix, 0.01 * identity, *arguments, 1.0).isfinite().all()


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("beta", [0.0, 1.0, 100.0])
def test_energy_stays_between_the_bounds_of_q(beta, t):
    a_t, t = noisy(MIXTURES["wide"], t, count=4)
    energy = mixtures.grid_energy(MIXTURES["wide"], bounded, a_t, t, VP, beta)
    assert energy.abs().max() <= beta + 1e-9


def test_point_masses_are_allowed():
    """S = 0: the posterior has zero covariance and the energy is that of finitely many actions."""
    mix = Mixture(torch.full((4,), 0.25).double(), normal(4, 2), torch.zeros(4, 2, 2).double())
    a_t, t = normal(3, 2, seed=1), torch.tensor(0.4, dtype=torch.float64)
    support = guidance.support_energy(bounded(mix.means).expand(3, 4), mix.means.expand(3, 4, 2), a_t, t, VP, 2.0)
    assert torch.allclose(mixtures.grid_energy(mix, bounded, a_t, t, VP, 2.0, points=11), support, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "quadratic", "grid", "grid in chunks"])
def test_guidance_equals_finite_differences(kind):
    mix = MIXTURES["wide"]
    a_t, t = noisy(mix, 0.4, count=20 if kind == "grid in chunks" else 2)
    slope, hessian = normal(2, seed=6), -spd(2, seed=5)
    energy = {
        "linear": lambda a: mixtures.linear_energy(mix, slope, 0.0, a, t, VP, 2.0),
        "quadratic": lambda a: mixtures.quadratic_energy(mix, hessian, slope, 0.0, a, t, VP, 2.0),
    }.get(kind, lambda a: mixtures.grid_energy(mix, bounded, a, t, VP, 2.0))
    with torch.no_grad():
        gradient = mixtures.guidance(energy, a_t)
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    differences = torch.stack([(energy(a_t + h) - energy(a_t - h)) / 2e-5 for h in step], -1)
    assert torch.allclose(gradient, differences, atol=1e-7)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("d", [1, 2, 6])
def test_score_plus_guidance_is_the_score_of_the_target(d, t):
    """grad log pi*_t = grad log mu_t + grad E* with pi* = mu exp(beta Q), Q linear, again a mixture."""
    mix, slope, beta = mixture(d), normal(d, seed=5), 2.0
    a_t, t = noisy(mix, t)
    gradient = mixtures.guidance(lambda a: mixtures.linear_energy(mix, slope, 0.0, a, t, VP, beta), a_t)
    assert (mix.score(a_t, t, VP) + gradient - mix.tilted(slope, beta).score(a_t, t, VP)).abs().max() < 1e-9


@pytest.mark.parametrize(("d", "times"), [(1, (0.3, 0.6, 1.0)), (2, (0.3, 0.6)), (6, (0.3, 1.0)), (24, (0.5, 1.0))])
def test_support_energy_with_200_000_samples(d, times):
    """Within .05 of the exact energy where beta Q has a standard deviation of 1.5."""
    mix = mixture(d)
    support = mix.sample(200_000, generator(9))
    slope = normal(d, seed=5)
    slope = slope / (support @ slope).std()
    q = support @ slope
    for moment in times:
        a_t, t = noisy(mix, moment, count=4)
        truth = mixtures.linear_energy(mix, slope, 0.0, a_t, t, VP, 1.5)
        energy = torch.stack([guidance.support_energy(q, support, a, t, VP, 1.5) for a in a_t])
        assert (energy - truth).abs().max() < 0.05


@pytest.mark.parametrize(("beta", "sign"), [(0.1, 1), (1.0, -1), (10.0, -1)])
def test_first_order_reverses_its_sign_below_minus_one(beta, sign):
    """Every direction has the one lambda = -beta c: truth goes with 1 / (1 - lambda), first order with 1 + lambda."""
    variance = 4.0
    mix = Mixture(torch.ones(1).double(), torch.zeros(1, 2).double(), variance * torch.eye(2).double()[None])
    a_t, t = noisy(mix, 0.5)
    cov = mix.posterior(a_t, t, VP).covariances[0]
    hessian, slope = -torch.eye(2, dtype=torch.float64), torch.tensor([0.5, -0.2], dtype=torch.float64)
    factor = torch.linalg.eigvalsh(beta * hessian @ cov).min()
    assert (factor > -1) == (sign > 0)

    def first(a):
        m = mix.posterior(a, t, VP).mean
        return guidance.taylor_energy(m @ slope - m.square().sum(-1) / 2, slope - m, cov.expand(len(a), 2, 2), beta)

    truth = mixtures.guidance(lambda a: mixtures.quadratic_energy(mix, hessian, slope, 0.0, a, t, VP, beta), a_t)
    wrong = mixtures.guidance(first, a_t)
    assert (sign * torch.cosine_similarity(truth, wrong, dim=-1) > 1 - 1e-9).all()
    assert torch.allclose(wrong, (1 + factor) * (1 - factor) * truth, atol=1e-9)


@pytest.mark.parametrize(("beta", "low", "high"), [(0.1, 0.99, 1), (2.0, -1, -0.3), (20.0, -1, -0.2)])
def test_one_reversed_direction_turns_the_mean_guidance(beta, low, high):
    """Anisotropic Gaussian data: a direction with lambda < -1 is reversed and carries most of the guidance."""
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.4]], dtype=torch.float64)
    mix = Mixture(torch.ones(1).double(), torch.zeros(1, 2).double(), covariance[None])
    a_t, t = noisy(mix, 0.5, count=200)
    cov = mix.posterior(a_t, t, VP).covariances[0]
    hessian, slope = -torch.diag(torch.tensor([2.0, 0.5])).double(), torch.tensor([1.0, -0.5], dtype=torch.float64)
    assert (torch.linalg.eigvals(beta * hessian @ cov).real.min() < -1) == (high < 0)

    def first(a):
        m = mix.posterior(a, t, VP).mean
        return guidance.taylor_energy(
            m @ slope + (m @ hessian * m).sum(-1) / 2, slope + m @ hessian, cov.expand(len(a), 2, 2), beta
        )

    truth = mixtures.guidance(lambda a: mixtures.quadratic_energy(mix, hessian, slope, 0.0, a, t, VP, beta), a_t)
    cosine = torch.cosine_similarity(truth, mixtures.guidance(first, a_t), dim=-1).mean()
    assert low <= cosine <= high


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_energy_distance_of_two_normals(shift):
    """E|X - Y| of N(shift, 2) is a folded normal's mean; the U-statistic is unbiased and n = 4000 noisy to 1e-2."""
    x, y = normal(4000, 1), normal(4000, 1, seed=1) + shift
    spread = math.sqrt(2)
    across = spread * math.sqrt(2 / math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    known = 2 * across - 2 * spread * math.sqrt(2 / math.pi)
    assert mixtures.energy_distance(x, y) == pytest.approx(known, abs=0.003 + 0.06 * shift)


def test_samples_drawn_again_have_the_moments_of_the_tilted_mixture():
    mix, slope = MIXTURES["wide"], torch.tensor([2.0, -1.0], dtype=torch.float64)
    target = mix.tilted(slope, 1.5)
    g = generator()
    drawn = mix.sample(200_000, g)
    samples = drawn[torch.multinomial(torch.softmax(1.5 * drawn @ slope, 0), 50_000, replacement=True, generator=g)]
    mean = (target.weights[:, None] * target.means).sum(0)
    assert (samples.mean(0) - mean).abs().max() < 0.02
    assert mixtures.energy_distance(samples[:3000], target.sample(3000, generator(1))) < 0.002


def test_sampling_with_the_exact_noise_and_guidance_reaches_the_target():
    mix, slope = MIXTURES["wide"], torch.tensor([1.0, 1.0], dtype=torch.float64)

    def gradient(a, t):
        return mixtures.guidance(lambda x: mixtures.linear_energy(mix, slope, 0.0, x, t, VP, 1.0), a)

    samples = sampler.sample(lambda a, t: mix.noise(a, t, VP), normal(2000, 2), VP, 20, gradient)
    assert mixtures.energy_distance(samples, mix.tilted(slope, 1.0).sample(2000, generator(1))) < 0.004


def test_noise_keeps_the_dtype_of_the_action():
    noise = MIXTURES["ring"].noise(torch.zeros(3, 2), torch.tensor(0.5), VP)
    assert noise.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: Mixture(torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 3, 3)), "covariances.*1, 3, 3"),
        (lambda: Mixture(torch.ones(2), torch.zeros(2, 2), torch.zeros(2, 2, 2)), "sum to 1"),
        (lambda: mixtures.toy_mixture("rings"), "name must be one of 8gaussians"),
        (
            lambda: mixtures.grid_energy(mixture(3), bounded, torch.zeros(1, 3), torch.tensor(0.5), VP, 1.0),
            r"expected \(\.\.\., 2\)",
        ),
    ],
)
def test_public_doors_name_what_is_wrong(call, names):
    with pytest.raises(ValueError, match=names):
        call()
