"""Least squares on explicit rows, through the activation that follows: what the sequential refit solves for each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_solve

from onnx_amc.fit.solve import DEAD, factored, ridge_of

RIDGES = (1e-2, 1e-1, 1.0)
"""Pulls towards the prior weights that are tried on held-out rows, relative to the inputs' mean variance."""

CHUNK = 8_192
"""Rows that are multiplied at a time, in their own precision; the products are summed in float64."""

TINY = 1e-300
"""Variance of inputs that never move."""

Solve = Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]
"""Target -> ridge -> weights; the target is multiplied once, however many ridges are tried."""


@dataclass(frozen=True)
class Bounds:
    """An activation that is the identity between two bounds and flat outside: what lies beyond both ways is no error.

    Args:
        low: Lower bound, 0 for a ReLU.
        high: Upper bound, infinite for a ReLU.

    """

    low: float = -np.inf
    high: float = np.inf

    def aim(self, target: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Return the target, moved to what was found wherever the activation hides the difference."""
        aim = target
        if self.low > -np.inf:
            aim = np.where(target <= self.low, np.minimum(found, self.low), aim)
        if self.high < np.inf:
            aim = np.where(target >= self.high, np.maximum(found, self.high), aim)
        return aim


@dataclass(frozen=True)
class Rows:
    """y = w x + b on explicit rows, each a column here; one problem, or many of one size along a first axis g.

    Args:
        x: ([g,] k, r), inputs.
        y: ([g,] o, r), what w x + b should be.
        prior: ([g,] o, k), weights to stay near to.
        base: ([g,] o, r), what is added to it before the activation; None for nothing.
        affine: Whether there is a bias.

    """

    x: Float[np.ndarray, "*g k r"]
    y: Float[np.ndarray, "*g o r"]
    prior: Float[np.ndarray, "*g o k"]
    base: Float[np.ndarray, "*g o r"] | None = None
    affine: bool = True


def fit(
    rows: Rows, bounds: Bounds | None = None, *, ridges: Sequence[float] = RIDGES, rounds: int = 3, held: float = 0.2
) -> tuple[Float[np.ndarray, "*g o k"], Float[np.ndarray, "*g o"]]:
    """Weights and bias that reproduce y best: argmin E|f(y + base) - f(w x + b + base)|^2 + lambda |w - prior|^2.

    Where the activation f is flat, the target follows the prediction in turn with the fit (as in Zhang et al. 2015,
    "Accelerating very deep convolutional networks", section 3.2, with an exact step for a ReLU). lambda is the one of `ridges` that
    predicts the last `held` share of the rows best when fitted to the others. With more inputs than rows, the dual is solved.

    Args:
        rows: Inputs, targets and prior.
        bounds: Of the activation; None for the identity.
        ridges: Candidates for lambda, relative to the mean variance of the inputs.
        rounds: Times that the target is moved.
        held: Share of the rows that lambda is chosen on.

    """
    r = rows.x.shape[-1]
    mean = rows.x.mean(axis=-1, keepdims=True, dtype=np.float64).astype(rows.x.dtype) * rows.affine
    z = rows.x - mean
    split = r - int(held * r) if len(ridges) > 1 else r
    head, tail = z[..., :split], z[..., split:]
    wide = z.ndim == 2 and len(z) > split
    first = np.zeros((0, 0)) if wide else _product(head, head)
    best = np.array(ridges[0])
    if split < r:
        target, _ = _centred(rows.y, affine=rows.affine)
        at = (_dual(head, rows.prior) if wide else _primal(head, rows.prior, first))(target[..., :split])
        errors = [_error(at(np.array(v)), tail, target[..., split:]) for v in ridges]
        best = np.array(ridges)[np.argmin(errors, axis=0)]
    solve = _dual(z, rows.prior) if wide else _primal(z, rows.prior, first + _product(tail, tail))
    y, base = rows.y, rows.base
    wanted = y if base is None else y + base
    for left in range(rounds if bounds is not None else 0, -1, -1):
        target, offset = _centred(y, affine=rows.affine)
        w = solve(target)(best)
        if left and bounds is not None:
            found = w.astype(z.dtype) @ z
            found += offset
            y = bounds.aim(wanted, found) if base is None else bounds.aim(wanted, found + base) - base
    return w, (offset - w @ mean)[..., 0] * rows.affine


def _centred(y: np.ndarray, *, affine: bool) -> tuple[np.ndarray, np.ndarray]:
    offset = y.mean(axis=-1, keepdims=True, dtype=np.float64).astype(y.dtype) * affine
    return y - offset, offset


def _primal(z: np.ndarray, prior: np.ndarray, gram: np.ndarray) -> Solve:
    """Solve by the normal equations; `gram` is z z'."""
    k, r = z.shape[-2:]
    gram = gram / r
    if z.ndim > 2:
        power = np.diagonal(gram, axis1=-2, axis2=-1).mean(axis=-1)
        scales = np.maximum(power, max(DEAD * float(power.mean()), TINY))[..., None, None]

        def solve_each(target: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
            cross = _product(target, z) / r

            def at(ridge: np.ndarray) -> np.ndarray:
                extra = ridge[..., None, None] * scales
                right = (cross + extra * prior).swapaxes(-1, -2)
                return np.asarray(np.linalg.solve(gram + extra * np.eye(k), right).swapaxes(-1, -2))

            return at

        return solve_each
    scale = ridge_of(gram, 1.0)
    factor_at = cache(lambda ridge: factored(gram, ridge * scale))

    def solve(target: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        cross = _product(target, z) / r

        def at(ridge: np.ndarray) -> np.ndarray:
            factor, extra = factor_at(float(ridge))
            return np.asarray(cho_solve(factor, (cross + extra * prior).T, check_finite=False).T)

        return at

    return solve


def _dual(z: np.ndarray, prior: np.ndarray) -> Solve:
    """The same with a matrix of rows x rows, for more inputs than rows."""
    k, r = z.shape
    gram = (z.T @ z).astype(np.float64) / r
    power = float(np.trace(gram)) / k or 1.0  # inputs that never move keep their weights
    misfit = (prior.astype(z.dtype) @ z).astype(np.float64)
    factor_at = cache(lambda ridge: factored(gram, ridge * power))

    def solve(target: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        left = (target - misfit).T / r

        def at(ridge: np.ndarray) -> np.ndarray:
            factor, _ = factor_at(float(ridge))
            return np.asarray(prior + cho_solve(factor, left, check_finite=False).T.astype(z.dtype) @ z.T)

        return at

    return solve


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A b', ([g,] rows of a, rows of b) in float64."""
    total = np.zeros((*a.shape[:-1], b.shape[-2]))
    for start in range(0, a.shape[-1], CHUNK):
        total += a[..., start : start + CHUNK] @ b[..., start : start + CHUNK].swapaxes(-1, -2)
    return total


def _error(w: np.ndarray, z: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(target - w.astype(z.dtype) @ z, dtype=np.float64).sum(axis=(-1, -2)))
