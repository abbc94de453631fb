"""Posterior covariances, rules, losses and samplers of the exactness study against closed forms."""

import posteriors
import pytest
import torch

from aepo.core import guidance, losses, models, networks, posterior
from aepo.core.schedule import VPSchedule

VP = VPSchedule()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(d):
    root = normal(d, d, seed=d)
    return normal(d, seed=d + 50), root @ root.T / d + 0.05 * torch.eye(d, dtype=torch.float64)


@pytest.mark.parametrize("d", [1, 2, 6, 24])
@pytest.mark.parametrize("t", [1e-3, 0.3, 1.0])
def test_gaussian_posteriors_agree(d, t):
    """`gaussian_data` and `tweedie` with the exact noise model against the joint Gaussian of (a, a_t), inverted whole."""
    mean, cov = gaussian(d)
    t, a_t = torch.tensor(t, dtype=torch.float64), normal(3, 4, d)
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    marginal = alpha**2 * cov + sigma**2 * torch.eye(d, dtype=torch.float64)
    gain = torch.linalg.solve(marginal, alpha * cov).T
    true_mean, true_cov = mean + (a_t - alpha * mean) @ gain.T, cov - alpha * gain @ cov

    def noise(a, moment):
        return sigma * torch.linalg.solve(marginal, (a - alpha * mean).unsqueeze(-1)).squeeze(-1)

    for m, c in (posteriors.gaussian_data(a_t, t, VP, mean, cov), posteriors.tweedie(noise, a_t, t, VP)):
        assert torch.allclose(m, true_mean, atol=1e-9 / alpha**2)
        assert torch.allclose(c.expand(3, 4, d, d), true_cov.expand(3, 4, d, d), atol=1e-9 / alpha**2)


def test_a_singular_covariance_is_fine():
    cov = torch.diag(torch.tensor([0.5, 0.0], dtype=torch.float64))
    m, c = posteriors.gaussian_data(
        normal(5, 2), torch.tensor(0.4, dtype=torch.float64), VP, torch.zeros(2, dtype=torch.float64), cov
    )
    assert torch.allclose(c[1], torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(m[:, 1], torch.zeros(5, dtype=torch.float64))


def test_curvature_of_a_quadratic():
    hessian = torch.diag(torch.tensor([3.0, -1.0]))
    along = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    bend = guidance.curvature(
        lambda a: 0.5 * ((a @ hessian) * a).sum(-1), torch.zeros(2, 2), torch.tensor([0.1, 0.2]), 2.0, along
    )
    assert torch.allclose(bend, torch.tensor([2 * 0.1 * 3, 2 * 0.2 * 1]))
    linear = guidance.curvature(lambda a: a.sum(-1), torch.zeros(2, 2), torch.tensor([0.1, 0.2]), 2.0, along)
    assert linear.tolist() == [0, 0]


def test_contrastive_loss_is_least_at_the_softmax_of_q():
    """Its value is a cross-entropy: at energies equal to beta Q it is the entropy, the least it can be."""
    support, noise, t = normal(1, 4, 8, 2), normal(1, 4, 8, 2, seed=1), torch.full((1, 4), 0.3, dtype=torch.float64)
    q = normal(1, 4, 8, seed=2)

    class Energies(torch.nn.Module):
        def __init__(self, values):
            super().__init__()
            self.values = values

        def forward(self, state, noisy, times):
            return self.values.reshape(1, -1)

    def loss(values):
        return losses.contrastive_loss(Energies(values), torch.zeros(1, 4, 1), support, noise, t, q, VP)[0].item()

    entropy = -(torch.softmax(q, -1) * torch.log_softmax(q, -1)).sum(-1).mean().item()
    assert loss(q + 3.0) == pytest.approx(entropy, abs=1e-12)
    assert all(loss(q + 0.3 * normal(1, 4, 8, seed=s)) > entropy for s in range(5))


def test_contrastive_noise_and_times_reach_the_network():
    net = networks.initialize(networks.EnergyNet(2, 1, 2, 8, 2, VP).double(), (0, 1), "x")
    support, noise, t = normal(2, 3, 4, 2), normal(2, 3, 4, 2, seed=1), torch.full((2, 3), 0.4, dtype=torch.float64)
    state, q = torch.zeros(2, 3, 1, dtype=torch.float64), normal(2, 3, 4, seed=2)
    loss, _ = losses.contrastive_loss(net, state, support, noise, t, q, VP)
    total = torch.zeros(2, dtype=torch.float64)
    for b in range(3):
        alpha, sigma = VP.alpha(t[0, 0]), VP.sigma(t[0, 0])
        f = net(state[:, :1].expand(-1, 4, -1), alpha * support[:, b] + sigma * noise[:, b], t[:, :1].expand(-1, 4))
        total -= (torch.softmax(q[:, b], -1) * torch.log_softmax(f, -1)).sum(-1) / 3
    assert torch.allclose(loss, total)


DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_nothing_gives_nan(dtype, beta, scale):
    """beta 0 to 100, t 1e-3 to 1, covariance 0 and singular, Q constant and huge, one support action."""
    g = torch.Generator().manual_seed(0)
    a_t = torch.randn(7, 2, generator=g, dtype=dtype).requires_grad_(True)
    for t in (1e-3, 0.5, 1.0):
        t = torch.tensor(t, dtype=dtype)
        mean = posterior.mean(a_t, 0.5 * a_t, t, VP, -1.0, 1.0)
        q, gradient = scale * mean[:, 0], scale * torch.ones_like(mean)
        singular = torch.diag(torch.tensor([0.5, 0.0], dtype=dtype)).expand(7, 2, 2)
        hessian = -scale * torch.eye(2, dtype=dtype).expand(7, 2, 2)
        energies = [
            guidance.taylor_energy(q, gradient, c, beta, hessian=h, curvature=kind, bounds=(-scale, scale))
            for c in (torch.zeros(7, dtype=dtype), torch.full((7,), 0.3, dtype=dtype), singular)
            for h, kind in ((None, "keep"), (hessian, "keep"), (-hessian, "negative"))
        ]
        energies.append(guidance.cubature_energy(lambda a: scale * a[..., 1], mean, torch.zeros(7, dtype=dtype), beta))
        energies.append(
            guidance.cubature_energy(lambda a: scale * torch.tanh(a[..., 1]), mean, singular, beta, -1.0, 1.0)
        )
        for count in (1, 5):
            support = torch.rand(7, count, 2, generator=g, dtype=dtype)
            energies.append(guidance.support_energy(scale * support[..., 0], support, a_t, t, VP, beta))
        for energy in energies:
            assert not torch.isnan(energy).any()
            slope = torch.autograd.grad(energy.sum(), a_t, retain_graph=True, allow_unused=True)[0]
            assert slope is None or not torch.isnan(slope).any()


def test_seed_axis_and_none_give_the_same():
    q, g, c, h = normal(2, 3), normal(2, 3, 4, seed=1), normal(2, 3, seed=2).abs(), -torch.eye(4, dtype=torch.float64)
    stacked = guidance.taylor_energy(q, g, c, 1.5, hessian=h.expand(2, 3, 4, 4))
    assert torch.allclose(stacked[1], guidance.taylor_energy(q[1], g[1], c[1], 1.5, hessian=h.expand(3, 4, 4)))
    assert torch.allclose(stacked[1, 2], guidance.taylor_energy(q[1, 2], g[1, 2], c[1, 2], 1.5, hessian=h))


def test_gradients_equal_finite_differences():
    a_t, t = normal(4, 2).requires_grad_(True), torch.tensor(0.4, dtype=torch.float64)
    support = normal(4, 6, 2, seed=3)

    def energies(a):
        m = posterior.mean(a, torch.tanh(a), t, VP)
        q = torch.sin(m).sum(-1)
        yield guidance.taylor_energy(
            q, torch.cos(m), 0.1 + m[:, 0] ** 2, 2.0, hessian=torch.diag_embed(-torch.sin(m)), curvature="negative"
        )
        yield guidance.cubature_energy(lambda x: torch.sin(x).sum(-1), m, 0.1 + m[:, 0] ** 2, 2.0)
        yield guidance.support_energy(torch.sin(support).sum(-1), support, a, t, VP, 2.0)

    for i in range(3):
        assert torch.autograd.gradcheck(lambda a, i=i: list(energies(a))[i], a_t)


def test_the_closed_form_finds_the_guidance_of_a_gaussian():
    """A behavior N(0, s^2) inside the box and a linear advantage: grad E* = beta w alpha s^2 / (alpha^2 s^2 + sigma^2)."""
    s2, w, beta, t = 0.04, torch.tensor([1.0, -0.5]), 2.0, torch.tensor(0.4)

    class Noise:
        def noise_net(self, state, a, moment):
            return VP.sigma(moment) * a / (VP.alpha(moment) ** 2 * s2 + VP.sigma(moment) ** 2)

        variance = torch.full((1, 9), 1.0)

    class Linear:
        def advantage(self, state, action):
            return action @ w

    alpha, sigma = VP.alpha(t), VP.sigma(t)
    true = beta * w * alpha * s2 / (alpha**2 * s2 + sigma**2)
    noisy, state = 0.5 * torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(1, 6, 1)
    point = models.ClosedForm("point", Noise(), Linear(), beta).gradient(state, noisy, t)
    assert torch.allclose(point, true.expand_as(point), atol=1e-5)


def test_the_gate_is_an_option():
    state, action, t = torch.zeros(1, 3, 1), torch.randn(1, 3, 2), torch.full((1, 3), 0.6)
    gated, free = (networks.initialize(networks.EnergyNet(1, 1, 2, 8, 2, VP, gate=g), (0,), "x") for g in (True, False))
    assert torch.allclose(gated.gradient(state, action, t), VP.alpha(t)[..., None] * free.gradient(state, action, t))


@pytest.mark.parametrize("moment", [1e-3, 0.1, 0.6, 1.0])
def test_the_jacobian_gate_is_that_of_the_posterior_mean_of_a_gaussian(moment):
    """alpha c_t / sigma^2, which for N(0, S) is dm/da_t = alpha S / (alpha^2 S + sigma^2): exact where the table has t."""
    times, spread = posterior.variance_times(1_000, dtype=torch.float64), 0.2
    snr = (VP.alpha(times) / VP.sigma(times)) ** 2
    net = networks.EnergyNet(2, 1, 2, 8, 2, VP, "jacobian", 1_000).double()
    net.variance.copy_(spread / (1 + snr * spread))
    networks.initialize(net, (0, 1), "x")
    free = networks.EnergyNet(2, 1, 2, 8, 2, VP, False).double()
    free.load_state_dict({key: value for key, value in net.state_dict().items() if key != "variance"})
    g = torch.Generator().manual_seed(0)
    state, action = torch.zeros(2, 3, 1).double(), torch.randn(2, 3, 2, generator=g).double()
    t = times[(times - moment).abs().argmin()]
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    expected = alpha * posterior.isotropic_variance(net.variance, t) / sigma**2
    assert torch.allclose(expected, alpha * spread / (alpha**2 * spread + sigma**2), rtol=1e-9)
    for moments in (t, t.expand(2, 3)):
        ratio = net.gradient(state, action, moments) / free.gradient(state, action, moments)
        assert torch.allclose(ratio, expected.unsqueeze(-1).expand_as(ratio), rtol=1e-12)


def test_zero_covariance_is_the_point_estimate():
    mean = normal(4, 2)
    energy = guidance.taylor_energy(mean[:, 0], torch.ones_like(mean), torch.zeros(4, dtype=torch.float64), 2.0)
    assert torch.equal(energy, 2.0 * mean[:, 0])


def test_second_order_gradient_is_exact_for_a_concave_quadratic():
    """d/dm of the energy through `offset`, against the closed form beta (I - beta C H)^-1-weighted slope, 1e-8."""
    _, cov = gaussian(3)
    hessian, slope, beta = -gaussian(3)[1], normal(3, seed=8), 2.0
    mean = normal(3, seed=9).requires_grad_(True)
    energy = guidance.taylor_energy(
        slope @ mean + 0.5 * mean @ hessian @ mean, slope + hessian @ mean, cov, beta, hessian=hessian
    )
    true = beta * torch.linalg.solve(torch.eye(3, dtype=torch.float64) - beta * hessian @ cov, slope + hessian @ mean)
    assert torch.allclose(torch.autograd.grad(energy, mean)[0], true, atol=1e-8)
