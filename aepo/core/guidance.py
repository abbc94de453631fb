"""Closed forms of the intermediate energy E(s, a_t, t) = log E_{mu_{0|t}(a | a_t, s)} exp(beta Q(s, a)) and its guidance.

Exactly, for any Q: grad_{a_t} E = alpha/sigma^2 (E_tilted[a_0] - E[a_0]), tilted = mu_{0|t}(a | a_t) exp(beta Q(a)) / Z. The
`*_shift` functions are closed forms of that difference of means, in units of the clean action: the guided prediction of a
sampler is the posterior mean plus the shift.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from aepo.core.schedule import Limit, VPSchedule, check_time, clip, expand_time

Function = Callable[[Tensor], Tensor]
Bounds = tuple[Tensor | float, Tensor | float] | None


def _check_beta(beta: float) -> None:
    if not (isinstance(beta, int | float) and math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be a finite number >= 0, got {beta!r}")


class _Spectral(torch.autograd.Function):
    """f(A) of a symmetric matrix through its eigenvalues, differentiated by divided differences.

    `image(values)` is f at the eigenvalues, `divided(values)` `(..., d, d)` is (f_i - f_j)/(l_i - l_j), with f' where
    eigenvalues meet: unlike the gradient of an eigendecomposition it is finite at repeated eigenvalues.
    """

    @staticmethod
    def forward(ctx, matrix: Tensor, image: Function, divided: Function) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        ctx.save_for_backward(values, vectors)
        ctx.divided = divided
        return (vectors * image(values).unsqueeze(-2)) @ vectors.transpose(-1, -2)

    @staticmethod
    def backward(ctx, grad: Tensor):
        values, vectors = ctx.saved_tensors
        inner = vectors.transpose(-1, -2) @ grad @ vectors
        return vectors @ (ctx.divided(values) * inner) @ vectors.transpose(-1, -2), None, None


def _square_root_divided(values: Tensor) -> Tensor:
    root = values.clamp(min=0).sqrt()
    total = root.unsqueeze(-1) + root.unsqueeze(-2)
    return torch.where(total > 0, 1 / total.masked_fill(total == 0, 1.0), 0.0)


def _negative_part_divided(values: Tensor) -> Tensor:
    part, below = values.clamp(max=0), (values < 0).to(values)
    gap = values.unsqueeze(-1) - values.unsqueeze(-2)
    near = gap.abs() < 1e-12
    divided = (part.unsqueeze(-1) - part.unsqueeze(-2)) / gap.masked_fill(near, 1.0)
    return torch.where(near, (below.unsqueeze(-1) + below.unsqueeze(-2)) / 2, divided)


def _kind(covariance: Tensor, gradient: Tensor) -> int:
    """Axes that C has beyond the leading ones, told against `gradient` `(..., d)`: 0 isotropic, 1 diagonal, 2 full."""
    kind = covariance.ndim - gradient.ndim + 1
    d = gradient.shape[-1]
    fits = kind in (0, 1, 2) and covariance.shape[covariance.ndim - kind :] == (d,) * kind
    if fits:
        lead = zip(covariance.shape[: covariance.ndim - kind], gradient.shape[:-1], strict=True)
        fits = all(c in (1, g) or g == 1 for c, g in lead)
    if not fits:
        given = f"covariance has shape {tuple(covariance.shape)}; with a gradient or mean of shape"
        kinds = f"(...,) isotropic, (..., {d}) diagonal or (..., {d}, {d}) full"
        raise ValueError(f"{given} {tuple(gradient.shape)} expected {kinds}; leading axes may be 1 but not missing")
    return kind


def _factor(covariance: Tensor, kind: int) -> Tensor:
    """L with C = L L': square root, of a full covariance the symmetric one, which moves smoothly with C."""
    if kind < 2:
        return covariance.clamp(min=0).sqrt()
    return _Spectral.apply(covariance, lambda values: values.clamp(min=0).sqrt(), _square_root_divided)


def _times(covariance: Tensor, kind: int, vector: Tensor) -> Tensor:
    """C v for a vector `(..., d)`."""
    if kind == 2:
        return (covariance @ vector.unsqueeze(-1)).squeeze(-1)
    return (covariance if kind == 1 else covariance.unsqueeze(-1)) * vector


def taylor_energy(
    q: Tensor,
    gradient: Tensor,
    covariance: Tensor,
    beta: float,
    hessian: Tensor | None = None,
    offset: Tensor | None = None,
    curvature: str = "keep",
    bounds: Bounds = None,
) -> Tensor:
    """AEPO's closed form: E = beta Q(b) + beta g.(m - b) + beta^2/2 g'Cg, with g = grad Q(b) (Gaussian moments).

    With `hessian`: E = beta q + beta^2/2 g'L(I-A)^-1 L'g - 1/2 logdet(I-A), A = beta L'HL, C = LL', exact for a
    quadratic Q; q and g are first carried from the reference b to the mean m = b + offset.
    q `(...,)`, gradient `(..., d)`, hessian `(..., d, d)`; covariance `(...,)`, `(..., d)` or `(..., d, d)`.
    `curvature` "negative" drops positive eigenvalues of A; "keep" returns +inf where I - A is not positive
    definite (the expectation is infinite there). `bounds` (low, high) of Q clamp E to beta * bounds.
    Returns `(...,)`. ValueError for wrong shapes, beta < 0 or an unknown `curvature`.
    """
    _check_beta(beta)
    if curvature not in ("keep", "negative"):
        raise ValueError(f"curvature must be 'keep' or 'negative', got {curvature!r}")
    for name, value, tail in (("offset", offset, 1), ("hessian", hessian, 2)):
        if value is not None and value.shape[-tail:] != gradient.shape[-1:] * tail:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, gradient has {tuple(gradient.shape)}")
    if q.ndim != gradient.ndim - 1:
        raise ValueError(f"q has shape {tuple(q.shape)}, expected one axis fewer than {tuple(gradient.shape)}")
    kind = _kind(covariance, gradient)
    if offset is not None:
        q = q + (gradient * offset).sum(-1)
        if hessian is not None:
            carried = (hessian @ offset.unsqueeze(-1)).squeeze(-1)
            q = q + 0.5 * (carried * offset).sum(-1)
            gradient = gradient + carried
    if hessian is None:
        energy = beta * q + 0.5 * beta**2 * (gradient * _times(covariance, kind, gradient)).sum(-1)
    else:
        matrix = _factor(covariance, kind)
        if kind < 2:
            diagonal = matrix if kind else matrix.unsqueeze(-1).expand(*matrix.shape, gradient.shape[-1])
            matrix = torch.diag_embed(diagonal)
        slope = (matrix.mT @ gradient.unsqueeze(-1)).squeeze(-1)
        energy = beta * q + _quadratic_correction(slope, beta * matrix.mT @ hessian @ matrix, beta, curvature)
    return _clamp(energy, beta, bounds)


def _clamp(energy: Tensor, beta: float, bounds: Bounds) -> Tensor:
    """E within beta times the bounds of Q, where there are some."""
    if bounds is None:
        return energy
    low, high = (torch.as_tensor(b, dtype=energy.dtype, device=energy.device) * beta for b in bounds)
    return torch.minimum(torch.maximum(energy, low), high)


def _quadratic_correction(slope: Tensor, scaled_hessian: Tensor, beta: float, curvature: str) -> Tensor:
    """beta^2/2 u'(I-A)^-1 u - 1/2 logdet(I-A) for u = L'g; +inf where I - A is not positive definite."""
    scaled_hessian = (scaled_hessian + scaled_hessian.transpose(-1, -2)) / 2
    if curvature == "negative":
        scaled_hessian = _Spectral.apply(scaled_hessian, lambda values: values.clamp(max=0), _negative_part_divided)
    identity = torch.eye(slope.shape[-1], dtype=slope.dtype, device=slope.device)
    system = identity - scaled_hessian
    infinite = torch.linalg.cholesky_ex(system.detach()).info > 0
    factor = torch.linalg.cholesky_ex(torch.where(infinite[..., None, None], identity, system)).L
    solved = torch.linalg.solve_triangular(factor, slope.unsqueeze(-1), upper=False).squeeze(-1)
    half_logdet = torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
    correction = 0.5 * beta**2 * solved.square().sum(-1) - half_logdet
    return torch.where(infinite, torch.inf, correction)


def cubature_points(d: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Points z_k `(K, d)` and log weights `(K,)` that integrate N(0, I) exactly to the third degree (fifth for d = 1).

    d <= 2 (unscented): centre with weight kappa/3 and 2d points of radius sqrt(3) with weight 1/6, kappa = 3 - d; beyond:
    2d points of radius sqrt(d) with weight 1/2d.
    """
    axes = torch.eye(d, dtype=dtype, device=device)
    pairs = torch.cat([axes, -axes])
    if d <= 2:
        points = torch.cat([torch.zeros(1, d, dtype=dtype, device=device), math.sqrt(3) * pairs])
        weights = torch.full((2 * d + 1,), 1 / 6, dtype=dtype, device=device)
        weights[0] = (3 - d) / 3
    else:
        points = math.sqrt(d) * pairs
        weights = torch.full((2 * d,), 1 / (2 * d), dtype=dtype, device=device)
    return points, weights.log()


def box_points(mean: Tensor, covariance: Tensor, low: Limit = None, high: Limit = None) -> tuple[Tensor, Tensor]:
    """Points m + L z_k of `cubature_points` in the box `(..., K, d)`, and their log weights `(K,)`."""
    kind = _kind(covariance, mean)
    factor = _factor(covariance, kind)
    points, log_weights = cubature_points(mean.shape[-1], mean.dtype, mean.device)
    spread = points @ factor.mT if kind == 2 else (factor.unsqueeze(-2) if kind else factor[..., None, None]) * points
    return clip(mean.unsqueeze(-2) + spread, low, high), log_weights


def _cubature(
    q_function: Function, mean: Tensor, covariance: Tensor, beta: float, low: Limit, high: Limit
) -> tuple[Tensor, Tensor, Tensor]:
    """`box_points`, their log weights and Q `(..., K)`."""
    _check_beta(beta)
    candidates, log_weights = box_points(mean, covariance, low, high)
    q = q_function(candidates)
    if q.shape != candidates.shape[:-1]:
        raise ValueError(f"q_function returned shape {tuple(q.shape)}, expected {tuple(candidates.shape[:-1])}")
    return candidates, log_weights, q


def cubature_energy(
    q_function: Function, mean: Tensor, covariance: Tensor, beta: float, low: Limit = None, high: Limit = None
) -> Tensor:
    """E = logsumexp_k(beta Q(m + L z_k) + log w_k) over `cubature_points`, clipped to the box [low, high].

    mean `(..., d)`; covariance as in `taylor_energy`; `q_function` is called once with `(..., K, d)` -> `(..., K)`.
    Returns `(...,)`.
    """
    _, log_weights, q = _cubature(q_function, mean, covariance, beta, low, high)
    return torch.logsumexp(beta * q + log_weights, -1)


def _log_likelihood(
    q_values: Tensor, support: Tensor, noisy_action: Tensor, t: Tensor, vp: VPSchedule, check: bool
) -> Tensor:
    """l_j = -|a_t - alpha_t a_j|^2 / 2 sigma_t^2 `(..., M)`."""
    t = torch.as_tensor(t, dtype=noisy_action.dtype, device=noisy_action.device)
    if check:
        check_time(t)
        if q_values.shape[-1] != support.shape[-2] or support.shape[-1] != noisy_action.shape[-1]:
            others = f"q_values {tuple(q_values.shape)} and noisy_action {tuple(noisy_action.shape)}"
            raise ValueError(f"support has shape {tuple(support.shape)}; {others} need (..., M, d)")
    alpha, sigma = (expand_time(v, noisy_action) for v in (vp.alpha(t), vp.sigma(t)))
    distance = noisy_action.unsqueeze(-2) - (alpha.unsqueeze(-1) if alpha.ndim else alpha) * support
    return -distance.square().sum(-1) / (2 * sigma**2)


def support_energy(
    q_values: Tensor, support: Tensor, noisy_action: Tensor, t: Tensor, vp: VPSchedule, beta: float, check: bool = True
) -> Tensor:
    """Self-normalised E = logsumexp_j(l_j + beta Q_j) - logsumexp_j(l_j), l_j = -|a_t - alpha_t a_j|^2 / 2 sigma_t^2.

    q_values `(..., M)` and support `(..., M, d)`: behavior samples a_j of one state and their Q;
    noisy_action `(..., d)`; t 0-d or `(...,)`. Returns `(...,)`.
    """
    _check_beta(beta)
    log_likelihood = _log_likelihood(q_values, support, noisy_action, t, vp, check)
    return torch.logsumexp(log_likelihood + beta * q_values, -1) - torch.logsumexp(log_likelihood, -1)


def taylor_shift(gradient: Tensor, covariance: Tensor, beta: float) -> Tensor:
    """First-order shift beta C grad Q(m): exact for a Gaussian posterior and a linear Q.

    gradient `(..., d)`, covariance as in `taylor_energy`; returns `(..., d)`. The gradient of the first-order *energy*,
    sigma^2/alpha grad E = C (beta g + beta^2 HCg), has a second term, which the exact shift of that Q has not.
    """
    _check_beta(beta)
    return beta * _times(covariance, _kind(covariance, gradient), gradient)


def cubature_shift(
    q_function: Function, mean: Tensor, covariance: Tensor, beta: float, low: Limit = None, high: Limit = None
) -> Tensor:
    """sum_k (p_k - w_k) a_k, p = softmax(beta Q(a_k) + log w_k), over the points of `cubature_energy`: `(..., d)`.

    The tilted mean of the points less their plain mean; no gradient of Q. Arguments as in `cubature_energy`.
    """
    points, log_weights, q = _cubature(q_function, mean, covariance, beta, low, high)
    return _difference_of_means(log_weights, beta * q, points)


def support_shift(
    q_values: Tensor, support: Tensor, noisy_action: Tensor, t: Tensor, vp: VPSchedule, beta: float, check: bool = True
) -> Tensor:
    """sum_j (softmax(l_j + beta Q_j) - softmax(l_j)) a_j over behavior samples a_j: `(..., d)`; as `support_energy`."""
    _check_beta(beta)
    log_likelihood = _log_likelihood(q_values, support, noisy_action, t, vp, check)
    return _difference_of_means(log_likelihood, beta * q_values, support)


def _difference_of_means(log_weights: Tensor, tilt: Tensor, points: Tensor) -> Tensor:
    """Mean of points `(..., K, d)` under weights exp(log w + tilt) less that under exp(log w)."""
    change = torch.softmax(log_weights + tilt, -1) - torch.softmax(log_weights.expand_as(tilt), -1)
    return (change.unsqueeze(-1) * points).sum(-2)


KINDS = ("point", "taylor", "taylor-2", "cubature")


def closed_form(
    kind: str,
    q_function: Function,
    mean: Tensor,
    variance: Tensor,
    beta: float,
    bounds: Bounds = None,
    low: Limit = None,
    high: Limit = None,
) -> Tensor:
    """A closed form of the energy of a posterior N(mean, variance I), by kind; the one place where Q is asked for it.

    "point": beta Q(m). "taylor", "taylor-2": `taylor_energy` of first order, or of second without positive curvature.
    "cubature": `cubature_energy`, in the box [low, high]. mean `(..., d)`, variance `(...,)`; q_function `(..., d)` or
    `(..., K, d)` -> without the last axis. `bounds` of Q clamp E. Returns `(...,)`, with a graph where mean has one.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    through = mean.requires_grad
    with torch.enable_grad():
        at = mean if through else mean.detach().requires_grad_(kind.startswith("taylor"))
        if kind == "cubature":
            energy = cubature_energy(q_function, at, variance, beta, low, high)
        elif kind == "point":
            energy = beta * q_function(at)
        else:
            q, second = q_function(at), kind == "taylor-2"
            gradient = torch.autograd.grad(q.sum(), at, create_graph=through or second)[0]
            curved = hessian(gradient, at, create_graph=through) if second else None
            energy = taylor_energy(q, gradient, variance, beta, curved, curvature="negative")
    energy = _clamp(energy, beta, bounds)
    return energy if through else energy.detach()


def hessian(gradient: Tensor, at: Tensor, create_graph: bool = False) -> Tensor:
    """Hessian `(..., d, d)` by d vector products: gradient `(..., d)` of a function at `at`, with its graph; 0 if linear."""
    if not gradient.requires_grad:
        return gradient.new_zeros(*gradient.shape, gradient.shape[-1])
    rows = [
        torch.autograd.grad(gradient[..., i].sum(), at, retain_graph=True, create_graph=create_graph)[0]
        for i in range(gradient.shape[-1])
    ]
    return torch.stack(rows, -2)


def curvature(q_function: Function, mean: Tensor, variance: Tensor, beta: float, direction: Tensor) -> Tensor:
    """beta c_t |H v| with H the Hessian of Q at the posterior mean and v a unit vector: one Hessian-vector product.

    First order multiplies an eigendirection by 1 + lambda where the truth is 1/(1 - lambda), lambda = beta c_t eig(H):
    above 1 it is not to be trusted. mean, direction `(..., d)` (direction of any length), variance `(...,)` -> `(...,)`.
    """
    direction = direction / direction.norm(dim=-1, keepdim=True)
    with torch.enable_grad():
        reference = mean.detach().requires_grad_(True)
        gradient = torch.autograd.grad(q_function(reference).sum(), reference, create_graph=True)[0]
        if not gradient.requires_grad:  # Q is linear
            return torch.zeros_like(gradient[..., 0])
        product = torch.autograd.grad(gradient, reference, direction)[0]
    return beta * variance * product.norm(dim=-1)
