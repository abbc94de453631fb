"""Variance-preserving noise schedule: alpha_t, sigma_t and time grids (Song et al. 2021, arXiv 2011.13456)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

T_MIN = 1e-3
Limit = Tensor | float | None  # of a box
GRIDS = ("logsnr", "uniform", "quadratic")


@dataclass(frozen=True)
class VPSchedule:
    """VP schedule a_t = alpha_t a + sigma_t eps with log alpha_t = -t^2 (b1 - b0)/4 - b0 t/2.

    `beta_min` (b0) and `beta_max` (b1) are the ends of the linear rate; t is a tensor in (0, 1].
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha_t, shape of t."""
        return t * (t * ((self.beta_min - self.beta_max) / 4) - self.beta_min / 2)

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale alpha_t, shape of t."""
        return torch.exp(self.log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale sigma_t = sqrt(-expm1(2 log alpha_t)), shape of t."""
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def logsnr(self, t: Tensor) -> Tensor:
        """Half log signal-to-noise ratio lambda_t = log(alpha_t / sigma_t), shape of t."""
        return self.log_alpha(t) - torch.log(self.sigma(t))

    def time(self, logsnr: Tensor) -> Tensor:
        """Inverse of `logsnr`: the t at which log(alpha_t / sigma_t) takes the given value."""
        log_alpha = -0.5 * F.softplus(-2 * logsnr)
        half = self.beta_min / 2
        slope = self.beta_max - self.beta_min
        return -2 * log_alpha / (half + torch.sqrt(half**2 - slope * log_alpha))

    def grid(self, steps: int, grid: str = "logsnr", t_start: float = 1.0) -> Tensor:
        """`steps + 1` decreasing times from t_start to T_MIN in float64, uniform in log-SNR, t or sqrt(t)."""
        if grid not in GRIDS:
            raise ValueError(f"grid must be one of {', '.join(GRIDS)}, got {grid!r}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        ends = torch.tensor([t_start, T_MIN], dtype=torch.float64)
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        scales: dict[str, tuple] = {"logsnr": (self.logsnr, self.time), "uniform": (torch.clone, torch.clone)}
        forth, back = scales.get(grid, (torch.sqrt, torch.square))
        a, b = forth(ends)
        times = back(a + (b - a) * u)
        times[0], times[-1] = ends
        return times


def check_time(t: Tensor) -> None:
    """ValueError unless every t lies in (0, 1] (not looked at on a GPU, where it would wait for the device)."""
    if t.device.type == "cpu" and not bool(((t > 0) & (t <= 1)).all()):
        raise ValueError(f"t must lie in (0, 1], got values in [{t.min().item():g}, {t.max().item():g}]")


def clip(value: Tensor, low: Limit, high: Limit) -> Tensor:
    """A value in the box [low, high], where there is one."""
    return value if low is None and high is None else value.clamp(low, high)  # type: ignore[arg-type]


def expand_time(value: Tensor, like: Tensor) -> Tensor:
    """Append axes to `value` (0-d, or the leading axes of `like`) until it broadcasts over `like`."""
    if value.ndim > like.ndim:
        raise ValueError(f"t has shape {tuple(value.shape)}, more axes than {tuple(like.shape)}")
    if value.ndim == 0:
        return value
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))
