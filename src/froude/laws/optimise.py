"""Many small robust fits at once: every start (or bootstrap resample) is a row, every step one array operation.

Two stages: Gauss-Newton with iteratively reweighted squares under a loosened Huber threshold brings each row near a
minimum; BFGS with an asynchronous backtracking line search then finishes on the exact objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from froude.core.arrays import Floats

Residuals = Callable[[Floats], tuple[Floats, Floats]]
"""theta (rows, p) -> residuals (rows, n) and their derivatives (rows, p, n); a row that cannot be evaluated is NaN."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Sum over points of weight * Huber(residual), plus a quadratic penalty around a prior.

    ``weights`` is (n,) or (rows, n), ``prior_mean`` (p,) or (rows, p). The prior adds
    ``prior_weight * (theta - prior_mean)^2 / 2`` for each parameter.
    """

    residuals: Residuals
    weights: Floats
    delta: float
    prior_mean: Floats
    prior_weight: Floats

    def rows(self, index: Any) -> Problem:
        """The same problem for some of the rows."""
        weights = self.weights if self.weights.ndim == 1 else self.weights[index]
        means = self.prior_mean if self.prior_mean.ndim == 1 else self.prior_mean[index]
        return Problem(self.residuals, weights, self.delta, means, self.prior_weight)

    def value_and_gradient(self, theta: Floats) -> tuple[Floats, Floats]:
        """Objective (rows,) and gradient (rows, p); infinite where the form cannot be evaluated."""
        with np.errstate(all="ignore"):
            residual, slopes = self.residuals(theta)
            size = np.abs(residual)
            inside = size <= self.delta
            loss = np.where(inside, 0.5 * residual**2, self.delta * (size - 0.5 * self.delta))
            pull = np.clip(residual, -self.delta, self.delta) * self.weights
            away = theta - self.prior_mean
            value = (self.weights * loss).sum(axis=-1) + 0.5 * (self.prior_weight * away**2).sum(axis=-1)
            gradient = (slopes @ pull[..., None])[..., 0] + self.prior_weight * away
        bad = ~np.isfinite(value) | ~np.isfinite(gradient).all(axis=-1)
        return np.where(bad, np.inf, value), np.where(bad[:, None], 0.0, gradient)

    def curvature(self, theta: Floats) -> tuple[Floats, Floats, Floats]:
        """Objective, gradient and the reweighted Gauss-Newton curvature (rows, p, p), positive semi-definite."""
        with np.errstate(all="ignore"):
            residual, slopes = self.residuals(theta)
            size = np.abs(residual)
            loss = np.where(size <= self.delta, 0.5 * residual**2, self.delta * (size - 0.5 * self.delta))
            weight = self.weights * np.minimum(1.0, self.delta / np.maximum(size, 1e-300))
            weighted = slopes * weight[:, None, :]
            away = theta - self.prior_mean
            value = (self.weights * loss).sum(axis=-1) + 0.5 * (self.prior_weight * away**2).sum(axis=-1)
            gradient = (weighted @ residual[..., None])[..., 0] + self.prior_weight * away
            hessian = weighted @ np.swapaxes(slopes, 1, 2) + np.diag(self.prior_weight)
        bad = ~np.isfinite(value) | ~np.isfinite(hessian).all(axis=(1, 2)) | ~np.isfinite(gradient).all(axis=1)
        width = theta.shape[1]
        return (
            np.where(bad, np.inf, value),
            np.where(bad[:, None], 0.0, gradient),
            np.where(bad[:, None, None], np.eye(width), hessian),
        )


def gauss_newton(problem: Problem, theta: Floats, iterations: int = 40, tolerance: float = 1e-6) -> Floats:
    """Levenberg-Marquardt on reweighted squares, every row with its own damping; converged rows drop out."""
    theta = theta.copy()
    rows, width = theta.shape
    damping = np.full(rows, 1e-2)
    active = np.arange(rows)
    value, gradient, hessian = problem.curvature(theta)
    for _ in range(iterations):
        diagonal = np.einsum("rii->ri", hessian)
        lifted = hessian + (damping[active, None] * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300)[
            :, :, None
        ] * np.eye(width)
        step = -_solve(lifted, gradient)
        # No coordinate is a scale that should move by more than a few units at once.
        step *= np.minimum(1.0, 3.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        trial = theta[active] + step
        new_value, new_gradient, new_hessian = problem.rows(active).curvature(trial)
        better = new_value < value
        gain = np.where(better, value - new_value, 0.0)
        damping[active] = np.clip(np.where(better, damping[active] * 0.2, damping[active] * 8.0), 1e-9, 1e9)
        theta[active[better]] = trial[better]
        small = better & (gain <= tolerance * np.abs(new_value)) & (damping[active] < 1e-1)
        value = np.where(better, new_value, value)
        gradient = np.where(better[:, None], new_gradient, gradient)
        hessian = np.where(better[:, None, None], new_hessian, hessian)
        going = ~small & (damping[active] < 1e8) & np.isfinite(value)
        if not going.all():
            active, value, gradient, hessian = active[going], value[going], gradient[going], hessian[going]
        if not len(active):
            break
    return theta


def bfgs(problem: Problem, theta: Floats, iterations: int = 400, tolerance: float = 1e-13) -> tuple[Floats, Floats]:
    """Minimise every row. Returns the minimisers (rows, p) and objectives (rows,).

    Each pass evaluates every unfinished row once: rows whose step was good enough take it and choose a new direction,
    the others halve theirs. A row is done when no step improves it by more than ``tolerance`` of its value.
    """
    theta = theta.copy()
    value, gradient, hessian = problem.curvature(theta)
    width = theta.shape[1]
    eye = np.eye(width)
    scale = np.einsum("rii->ri", hessian)
    inverse = np.linalg.inv(hessian + (1e-8 * scale.max(axis=1, keepdims=True) + 1e-300)[:, :, None] * eye)
    done_value = value.copy()
    active = np.arange(len(theta))
    point, length, stalls = theta.copy(), np.ones(len(theta)), np.zeros(len(theta), dtype=int)
    direction = -np.einsum("rij,rj->ri", inverse, gradient)
    for _ in range(iterations):
        slope = np.einsum("ri,ri->r", direction, gradient)
        trial = point + length[:, None] * direction
        new_value, new_gradient = problem.rows(active).value_and_gradient(trial)
        accept = new_value <= value + 1e-4 * length * slope
        moved = trial - point
        change = new_gradient - gradient
        bend = np.einsum("ri,ri->r", moved, change)
        update = accept & (bend > 1e-12 * np.linalg.norm(moved, axis=1) * np.linalg.norm(change, axis=1)) & (bend > 0)
        rho = np.where(update, 1.0 / np.where(update, bend, 1.0), 0.0)
        left = eye - rho[:, None, None] * moved[:, :, None] * change[:, None, :]
        updated = left @ inverse @ np.swapaxes(left, 1, 2) + rho[:, None, None] * moved[:, :, None] * moved[:, None, :]
        inverse = np.where(update[:, None, None], updated, inverse)
        gain = value - new_value
        tiny = accept & (gain <= tolerance * np.abs(value))
        stalls = np.where(tiny, stalls + 1, np.where(accept, 0, stalls))
        point = np.where(accept[:, None], trial, point)
        value = np.where(accept, new_value, value)
        gradient = np.where(accept[:, None], new_gradient, gradient)
        fresh = -np.einsum("rij,rj->ri", inverse, gradient)
        uphill = np.einsum("ri,ri->r", fresh, gradient) >= 0
        fresh = np.where(uphill[:, None], -gradient, fresh)
        direction = np.where(accept[:, None], fresh, direction)
        length = np.where(accept, 1.0, 0.4 * length)
        going = (length > 1e-10) & (stalls < 3) & np.isfinite(value)
        if not going.all():
            theta[active] = point
            done_value[active] = value
            active, point, value, gradient = active[going], point[going], value[going], gradient[going]
            inverse, direction, length, stalls = inverse[going], direction[going], length[going], stalls[going]
        if not len(active):
            break
    theta[active] = point
    done_value[active] = value
    return theta, done_value


def _solve(matrices: Floats, vectors: Floats) -> Floats:
    try:
        return np.asarray(np.linalg.solve(matrices, vectors[..., None])[..., 0])
    except np.linalg.LinAlgError:
        # One singular row would spoil the batch.
        return np.asarray((np.linalg.pinv(matrices) @ vectors[..., None])[..., 0])
