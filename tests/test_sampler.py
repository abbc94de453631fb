import pytest
import torch

from aepo.core import sampler
from aepo.core.schedule import VPSchedule

VP = VPSchedule()
MEANS = torch.tensor([[-0.5, -0.5], [0.6, 0.3]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
STD = 0.15


def exact_noise(a, t):
    """eps = -sigma score of a two-component Gaussian mixture diffused to time t."""
    alpha, variance = VP.alpha(t), (VP.alpha(t) * STD) ** 2 + VP.sigma(t) ** 2
    difference = a.unsqueeze(-2) - alpha * MEANS
    posterior = torch.softmax(WEIGHTS.log() - difference.square().sum(-1) / (2 * variance), -1)
    return VP.sigma(t) * (posterior.unsqueeze(-1) * difference).sum(-2) / variance


def noise(count, seed=0):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def energy_distance(x, y):
    return 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()


def truth(count, seed=1):
    g = torch.Generator().manual_seed(seed)
    component = torch.multinomial(WEIGHTS, count, replacement=True, generator=g)
    return MEANS[component] + STD * torch.randn(count, 2, generator=g, dtype=torch.float64)


def test_exact_score_gives_the_known_mixture():
    floor = energy_distance(truth(4000, 2), truth(4000, 3))
    drawn = sampler.sample(exact_noise, noise(4000), VP, steps=15)
    assert energy_distance(drawn, truth(4000)) < floor + 0.003
    right = (drawn[:, 0] > 0).double().mean()
    assert right == pytest.approx(0.7, abs=0.03)


def test_logsnr_grid_beats_the_uniform_one():
    reference = truth(4000)
    distances = {
        grid: energy_distance(sampler.sample(exact_noise, noise(4000), VP, 15, grid=grid), reference)
        for grid in ("logsnr", "uniform")
    }
    assert distances["logsnr"] < 0.1 * distances["uniform"]


def test_second_order_converges_faster_than_first():
    fine = sampler.sample(exact_noise, noise(500), VP, steps=800)
    errors = {
        (order, steps): (sampler.sample(exact_noise, noise(500), VP, steps, order=order) - fine).abs().mean()
        for order in (1, 2)
        for steps in (10, 40)
    }
    assert errors[2, 40] < 0.5 * errors[1, 40]
    assert errors[2, 40] < 0.25 * errors[2, 10]


def test_guidance_with_the_exact_energy_gives_the_tilted_gaussian():
    """N(0, s^2) tilted by exp(w.a) is N(s^2 w, s^2); grad E* = w alpha s^2 / (alpha^2 s^2 + sigma^2)."""
    s2, w = 0.25, torch.tensor([1.0, -2.0], dtype=torch.float64)

    def model(a, t):
        return VP.sigma(t) * a / (VP.alpha(t) ** 2 * s2 + VP.sigma(t) ** 2)

    def gradient(a, t):
        return (w * VP.alpha(t) * s2 / (VP.alpha(t) ** 2 * s2 + VP.sigma(t) ** 2)).expand_as(a)

    drawn = sampler.sample(model, noise(20_000), VP, steps=40, energy_gradient=gradient)
    assert torch.allclose(drawn.mean(0), s2 * w, atol=0.02)
    assert torch.allclose(drawn.std(0), torch.full((2,), 0.5, dtype=torch.float64), atol=0.02)


def test_guidance_scale_zero_evaluates_no_energy():
    def forbidden(a, t):
        raise AssertionError("the energy was evaluated")

    guided = sampler.sample(exact_noise, noise(10), VP, energy_gradient=forbidden, guidance_scale=0.0)
    assert torch.equal(guided, sampler.sample(exact_noise, noise(10), VP))


def test_guidance_scale_can_differ_by_row():
    gradient = lambda a, t: torch.ones_like(a)  # noqa: E731
    start = noise(8).view(2, 4, 2)
    scales = torch.tensor([0.0, 2.0], dtype=torch.float64).view(2, 1, 1)
    both = sampler.sample(exact_noise, start, VP, energy_gradient=gradient, guidance_scale=scales)
    for row, scale in enumerate((0.0, 2.0)):
        alone = sampler.sample(exact_noise, start[row], VP, energy_gradient=gradient, guidance_scale=scale)
        assert torch.allclose(both[row], alone, atol=1e-12)


def test_box_steps_and_callback():
    seen = []
    drawn = sampler.sample(
        exact_noise,
        3 * noise(50),
        VP,
        steps=7,
        low=-0.4,
        high=0.4,
        callback=lambda i, t, a, p: seen.append((i, float(t), p)),
    )
    assert drawn.abs().max() <= 0.4
    assert [i for i, _, _ in seen] == list(range(7))
    assert seen[0][1] == 1.0
    assert all(p.abs().max() <= 0.4 for _, _, p in seen)


@pytest.mark.parametrize(("argument", "value"), [("order", 3), ("grid", "cosine"), ("t_start", 0.0), ("steps", 0)])
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=argument):
        sampler.sample(exact_noise, noise(2), VP, **{argument: value})
