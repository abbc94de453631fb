"""Closed forms against brute force in float64."""

import math

import pytest
import torch

from aepo.core import guidance, posterior
from aepo.core.schedule import VPSchedule

VP = VPSchedule()
torch.set_default_dtype(torch.float32)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(d, seed=0):
    root = normal(d, d, seed=seed)
    return root @ root.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


@pytest.mark.parametrize("d", [1, 2, 6, 24])
@pytest.mark.parametrize("t", [0.05, 0.3, 0.7, 1.0])
def test_first_order_is_exact_for_gaussian_data_and_linear_q(d, t):
    """E* = beta (w.m + q0) + beta^2/2 w'Cw, with the posterior from the joint Gaussian of (a, a_t), inverted whole."""
    beta, t = 2.5, torch.tensor(t, dtype=torch.float64)
    data_mean, data_cov, w = normal(d, seed=1), spd(d), normal(d, seed=2)
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    eye = torch.eye(d, dtype=torch.float64)
    gain = alpha * data_cov @ torch.linalg.inv(alpha**2 * data_cov + sigma**2 * eye)
    cov = data_cov - gain @ (alpha * data_cov)

    def exact(a_t):
        mean = data_mean + gain @ (a_t - alpha * data_mean)
        return beta * w @ mean + 0.5 * beta**2 * w @ cov @ w

    def closed(a_t):
        score = -torch.linalg.solve(alpha**2 * data_cov + sigma**2 * eye, a_t - alpha * data_mean)
        m = posterior.mean(a_t, -sigma * score, t, VP)
        return guidance.taylor_energy(m @ w, w, cov, beta)

    a_t = normal(d, seed=3)
    assert abs(exact(a_t) - closed(a_t)) < 1e-10
    gradients = [torch.autograd.functional.jacobian(f, a_t) for f in (exact, closed)]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-9


@pytest.mark.parametrize("d", [1, 2, 6])
def test_second_order_is_exact_for_a_concave_quadratic(d):
    """Against the Gaussian integral of exp(beta Q) written with the precision matrix."""
    beta, cov, mean, reference = 3.0, spd(d), normal(d, seed=1), normal(d, seed=2)
    hessian, slope = -spd(d, seed=5), normal(d, seed=3)

    def q(a):
        return slope @ a + 0.5 * a @ hessian @ a

    precision = torch.linalg.inv(cov) - beta * hessian
    linear = torch.linalg.solve(cov, mean) + beta * slope
    exact = 0.5 * (
        linear @ torch.linalg.solve(precision, linear)
        - mean @ torch.linalg.solve(cov, mean)
        - torch.logdet(precision)
        - torch.logdet(cov)
    )
    for b in (mean, reference):
        gradient = slope + hessian @ b
        energy = guidance.taylor_energy(q(b), gradient, cov, beta, hessian=hessian, offset=mean - b)
        assert abs(energy - exact) < 1e-10 * abs(exact)


def test_second_order_is_infinite_where_the_expectation_is():
    hessian = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    arguments = (
        torch.zeros((), dtype=torch.float64),
        torch.ones(2, dtype=torch.float64),
        torch.tensor(1.0, dtype=torch.float64),
    )
    assert guidance.taylor_energy(*arguments, beta=2.0, hessian=hessian) == math.inf
    dropped = guidance.taylor_energy(*arguments, beta=2.0, hessian=hessian, curvature="negative")
    flat = torch.diag(torch.tensor([0.0, -1.0], dtype=torch.float64))
    assert dropped == pytest.approx(guidance.taylor_energy(*arguments, beta=2.0, hessian=flat).item())


def test_dropping_positive_curvature_has_the_right_gradient():
    hessian = (spd(3) - spd(3, seed=9)).requires_grad_()
    q, g, c = (
        torch.zeros((), dtype=torch.float64),
        torch.ones(3, dtype=torch.float64),
        torch.tensor(0.4, dtype=torch.float64),
    )

    def energy(h):
        return guidance.taylor_energy(q, g, c, 2.0, hessian=(h + h.T) / 2, curvature="negative")

    assert torch.autograd.gradcheck(energy, hessian)
    repeated = -torch.eye(3, dtype=torch.float64, requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(energy(repeated), repeated)[0]).all()


def test_a_full_isotropic_covariance_has_a_finite_gradient():
    """Its eigenvalues are equal, where the gradient of an eigendecomposition is not finite."""
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    mean, hessian = normal(4, 2), -torch.eye(2, dtype=torch.float64).expand(4, 2, 2)
    cov = (scale * torch.eye(2, dtype=torch.float64)).expand(4, 2, 2)
    slopes = [
        torch.autograd.grad(energy.sum(), scale, retain_graph=True)[0]
        for energy in (
            guidance.taylor_energy(mean[:, 0], torch.ones_like(mean), cov, 2.0),
            guidance.taylor_energy(mean[:, 0], torch.ones_like(mean), cov, 2.0, hessian=hessian),
            guidance.cubature_energy(lambda a: torch.sin(a).sum(-1), mean, cov, 2.0),
        )
    ]
    isotropic = [
        torch.autograd.grad(energy.sum(), scale, retain_graph=True)[0]
        for energy in (
            guidance.taylor_energy(mean[:, 0], torch.ones_like(mean), scale.expand(4), 2.0),
            guidance.taylor_energy(mean[:, 0], torch.ones_like(mean), scale.expand(4), 2.0, hessian=hessian),
            guidance.cubature_energy(lambda a: torch.sin(a).sum(-1), mean, scale.expand(4), 2.0),
        )
    ]
    assert torch.allclose(torch.stack(slopes), torch.stack(isotropic), atol=1e-12)


def test_cubature_moves_smoothly_with_a_nearly_isotropic_covariance():
    """The factor must not turn with the eigenvectors, whose directions are arbitrary where eigenvalues meet."""
    mean = torch.zeros(1, 2, dtype=torch.float64)

    def energy(angle):
        turn = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
        )
        cov = turn @ torch.diag(torch.tensor([0.3, 0.3 + 1e-9], dtype=torch.float64)) @ turn.T
        return guidance.cubature_energy(lambda a: torch.sin(3 * a[..., 0] + a[..., 1]), mean, cov[None], 3.0).item()

    assert max(abs(energy(0.1 * i) - energy(0.0)) for i in range(16)) < 1e-7


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_covariance_kinds_agree(kind):
    q, g, c = normal(3, 4), normal(3, 4, 2, seed=1), normal(3, 4, seed=2).abs()
    shaped = {
        "isotropic": c,
        "diagonal": c[..., None].expand(3, 4, 2),
        "full": c[..., None, None] * torch.eye(2, dtype=torch.float64),
    }
    expected = 1.5 * q + 0.5 * 1.5**2 * c * g.square().sum(-1)
    assert torch.allclose(guidance.taylor_energy(q, g, shaped[kind], 1.5), expected, atol=1e-12)
    hessian = -torch.eye(2, dtype=torch.float64).expand(3, 4, 2, 2)
    second = guidance.taylor_energy(q, g, shaped[kind], 1.5, hessian=hessian)
    known = 1.5 * q + 0.5 * 1.5**2 * c / (1 + 1.5 * c) * g.square().sum(-1) - torch.log1p(1.5 * c)
    assert torch.allclose(second, known, atol=1e-12)


def test_bounds_clamp_the_energy():
    q, g, c = normal(50), 5 * normal(50, 2, seed=1), torch.ones(50, dtype=torch.float64)
    energy = guidance.taylor_energy(q, g, c, 3.0, bounds=(-1.0, 2.0))
    assert energy.min() >= -3
    assert energy.max() == 6


@pytest.mark.parametrize("d", [1, 2, 3, 6])
def test_cubature_integrates_third_degree_exactly(d):
    points, log_weights = guidance.cubature_points(d, torch.float64, torch.device("cpu"))
    weights = log_weights.exp()
    assert weights.sum() == pytest.approx(1, abs=1e-14)
    assert torch.allclose(weights @ points, torch.zeros(d, dtype=torch.float64), atol=1e-14)
    second = torch.einsum("k,ki,kj->ij", weights, points, points)
    assert torch.allclose(second, torch.eye(d, dtype=torch.float64), atol=1e-13)
    assert torch.einsum("k,ki,kj,kl->ijl", weights, points, points, points).abs().max() < 1e-13


def test_cubature_clips_to_the_box_and_calls_q_once():
    calls = []

    def q(a):
        calls.append(a)
        return a.sum(-1)

    guidance.cubature_energy(q, torch.full((2, 7, 3), 0.9), torch.ones(2, 7), 1.0, -1.0, 1.0)
    assert len(calls) == 1
    assert calls[0].shape == (2, 7, 6, 3)
    assert calls[0].abs().max() <= 1


def test_support_energy_converges_to_the_exact_energy_of_a_gaussian():
    t, beta = torch.tensor(0.5, dtype=torch.float64), 1.0
    w, support = torch.tensor([0.9, -0.5], dtype=torch.float64), normal(200_000, 2)
    a_t = torch.tensor([0.4, 0.2], dtype=torch.float64)
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    exact = beta * w @ (alpha * a_t) + 0.5 * beta**2 * sigma**2 * w @ w
    energy = guidance.support_energy(support @ w, support, a_t, t, VP, beta)
    assert abs(energy - exact) < 0.05


def test_support_energy_of_one_action_is_its_q():
    q = torch.tensor([[1.7]])
    energy = guidance.support_energy(q, torch.zeros(1, 1, 2), torch.ones(1, 2), torch.tensor([0.3]), VP, 2.0)
    assert energy.item() == pytest.approx(3.4)


def test_posterior_mean_is_clipped_and_exact():
    a, eps, t = normal(5, 2), normal(5, 2, seed=1), torch.full((5,), 0.6, dtype=torch.float64)
    a_t = VP.alpha(t)[:, None] * a + VP.sigma(t)[:, None] * eps
    assert torch.allclose(posterior.mean(a_t, eps, t, VP), a, atol=1e-12)
    assert posterior.mean(a_t, -eps, t, VP, -1.0, 1.0).abs().max() <= 1


def test_isotropic_variance_of_a_gaussian_is_its_posterior_variance():
    """With the exact noise model of N(0, s^2 I) the fitted c_t must be s^2 sigma^2 / (alpha^2 s^2 + sigma^2)."""
    s2, times = 0.25, posterior.variance_times(9, dtype=torch.float64)
    action, noise = 0.5 * normal(1, 40_000, 2), normal(9, 1, 40_000, 2, seed=1)
    table = posterior.fit_isotropic(
        lambda a, t: VP.sigma(t) * a / (VP.alpha(t) ** 2 * s2 + VP.sigma(t) ** 2), action, noise, times, VP
    )
    exact = s2 * VP.sigma(times) ** 2 / (VP.alpha(times) ** 2 * s2 + VP.sigma(times) ** 2)
    assert torch.allclose(table[0], exact, rtol=0.03)
    middle = posterior.isotropic_variance(table, (times[3] + times[4]) / 2)
    assert middle.item() == pytest.approx(table[0, 3:5].mean().item())


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: guidance.taylor_energy(torch.zeros(3), torch.zeros(3, 2), torch.zeros(3), -1.0), "beta.*-1"),
        (lambda: guidance.taylor_energy(torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 5), 1.0), "covariance.*3, 5"),
        (lambda: guidance.taylor_energy(torch.zeros(3), torch.zeros(3, 2), torch.eye(2), 1.0), "leading axes"),
        (lambda: guidance.taylor_energy(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3), 1.0), "q has shape"),
        (
            lambda: guidance.taylor_energy(torch.zeros(3), torch.zeros(3, 2), torch.zeros(3), 1.0, curvature="drop"),
            "curvature",
        ),
        (lambda: guidance.cubature_energy(lambda a: a, torch.zeros(3, 2), torch.zeros(3), 1.0), "q_function returned"),
        (
            lambda: guidance.support_energy(
                torch.zeros(3, 4), torch.zeros(3, 5, 2), torch.zeros(3, 2), torch.tensor(0.5), VP, 1.0
            ),
            "support",
        ),
        (
            lambda: posterior.mean(torch.zeros(3, 2), torch.zeros(3, 2), torch.tensor(0.0), VP),
            r"t must lie in \(0, 1\]",
        ),
        (lambda: posterior.mean(torch.zeros(3, 2), torch.zeros(3, 1), torch.tensor(0.5), VP), "noise has shape"),
    ],
)
def test_public_doors_name_what_is_wrong(call, names):
    with pytest.raises(ValueError, match=names):
        call()
