import pytest
import torch

from aepo.core.schedule import GRIDS, T_MIN, VPSchedule

VP = VPSchedule()
T = torch.linspace(T_MIN, 1, 101, dtype=torch.float64)


def test_variance_is_preserved():
    assert torch.allclose(VP.alpha(T) ** 2 + VP.sigma(T) ** 2, torch.ones_like(T), atol=1e-14)


def test_alpha_solves_its_differential_equation():
    rate = VP.beta_min + T * (VP.beta_max - VP.beta_min)
    derivative = torch.autograd.functional.jvp(VP.log_alpha, T, torch.ones_like(T))[1]
    assert torch.allclose(derivative, -rate / 2, atol=1e-12)


def test_time_inverts_logsnr():
    assert torch.allclose(VP.time(VP.logsnr(T)), T, atol=1e-13)


@pytest.mark.parametrize("grid", GRIDS)
def test_grid_is_uniform_in_its_variable(grid):
    times = VP.grid(12, grid)
    assert times.shape == (13,)
    assert times[0] == 1
    assert times[-1] == T_MIN
    variable = {"logsnr": VP.logsnr, "uniform": lambda t: t, "quadratic": torch.sqrt}[grid](times)
    assert torch.allclose(variable.diff(), variable.diff().mean(), atol=1e-9)
    assert (times.diff() < 0).all()


def test_grid_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"grid must be one of.*'karras'"):
        VP.grid(10, "karras")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        VP.grid(0)
