"""Least squares on moments: refit what is kept, and find what is missed least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.linalg import LinAlgError
from scipy.linalg import cho_solve

DEAD = 1e-10
"""A column whose variance is below this share of the mean one never moves: its effect is a constant."""

LEAST = 1e-12
"""Ridge, at least, where a matrix is inverted."""


def dead_columns(h: Float[np.ndarray, "k k"]) -> Bool[np.ndarray, " k"]:
    """Which inputs never change on the samples."""
    diagonal = np.diag(h)
    return np.asarray(diagonal <= DEAD * max(float(diagonal.mean()), 1e-300))


def ridge_of(h: Float[np.ndarray, "k k"], ridge: float) -> float:
    """The ridge as an absolute number: `ridge` times the mean variance of the columns that live."""
    alive = np.diag(h)[~dead_columns(h)]
    return float(ridge * (alive.mean() if alive.size else 1.0))


def refit(
    h: Float[np.ndarray, "k k"], w: Float[np.ndarray, "o k"], kept: Bool[np.ndarray, " k"], ridge: float
) -> Float[np.ndarray, "o s"]:
    """Weights on the kept columns that reproduce w x best: argmin_v E|w x - v x_s|^2 + lambda |v - w_s|^2.

    With lambda = `ridge` times the mean variance, shrinking towards the weights that were there rather than towards zero:
    v = (w h[:, s] + lambda w_s) (h[s, s] + lambda I)^-1 (AMC section 3.5, from moments instead of rows).

    Args:
        h: E[x x'], or the covariance where the bias is refitted as well.
        w: The original weights.
        kept: Which inputs remain.
        ridge: Relative strength of the pull towards the original weights.

    Raises:
        LinAlgError: Not positive definite even after the ridge was raised a millionfold.

    """
    inside = np.flatnonzero(kept)
    factor, extra = factored(h[np.ix_(inside, inside)], ridge_of(h, ridge))
    return np.asarray(cho_solve(factor, (w @ h[:, inside] + extra * w[:, inside]).T, check_finite=False).T)


def factored(h: Float[np.ndarray, "s s"], ridge: float) -> tuple[tuple[np.ndarray, bool], float]:
    """Cholesky factor of h + lambda I for `cho_solve`, and lambda: `ridge`, raised where that is not positive definite.

    By NumPy, which lets go of Python's lock meanwhile; SciPy does not.

    Raises:
        LinAlgError: Not positive definite even after the ridge was raised a millionfold.

    """
    for raised in (1.0, 1e2, 1e4, 1e6):
        extra = ridge * raised
        try:
            return (np.linalg.cholesky(h + extra * np.eye(len(h))).T, False), extra
        except LinAlgError:
            continue
    raise LinAlgError("the moments are not positive definite")


def error(h: Float[np.ndarray, "k k"], w: Float[np.ndarray, "o k"], v: Float[np.ndarray, "o k"]) -> float:
    """E|w x - v x|^2 relative to E|w x|^2."""
    gap = w - v
    return float(np.einsum("ok,kl,ol->", gap, h, gap) / max(np.einsum("ok,kl,ol->", w, h, w), 1e-300))


@dataclass
class Part:
    """One reader of a group: its moments, its weights, and the columns of each channel.

    Args:
        h: (k, k), moments of its inputs.
        w: (o, k), its weights.
        columns: int (channels, m), the inputs that belong to each channel of the group.
        weight: What a unit of its relative error is worth.

    """

    h: Float[np.ndarray, "k k"]
    w: Float[np.ndarray, "o k"]
    columns: Int[np.ndarray, "c m"]
    weight: float = 1.0


def eliminate(
    parts: list[Part], channels: int, ridge: float = 1e-4, steps: int = 192
) -> tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Order the channels by optimal-brain-surgeon elimination on blocks, over all readers of a group together.

    At each step the channel goes whose removal, with all remaining weights refitted, adds least to the readers' relative
    output error: sum over readers of tr(W_B (H^-1_BB)^-1 W_B'); then W and H^-1 are updated (Hassibi 1993, on blocks as in
    ZipLM). Above `steps` channels several go at a time. Cost: steps x sum over readers of k (k + o) m.

    Returns:
        The channels in the order in which they go, and the error after each; the last one to go has no error (infinity).

    """
    states = [_State(p, ridge) for p in parts]
    alive = np.ones(channels, dtype=bool)
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    while alive.sum() > 1:
        score = np.sum([s.scores() for s in states], axis=0)
        score[~alive] = np.inf
        many = min(max(1, -(-channels // steps)), int(alive.sum()) - 1)
        chosen = np.argsort(score, kind="stable")[:many]
        for c in chosen.tolist():
            alive[c] = False
            order.append(c)
            total += max(float(sum(s.remove(c) for s in states)), 0.0)
            errors.append(total)
    return np.array([*order, *np.flatnonzero(alive)]), np.array([*errors, np.inf])


class _State:
    """A reader's weights and inverse moments while channels go."""

    def __init__(self, part: Part, ridge: float) -> None:
        self.columns = part.columns
        extra = ridge_of(part.h, max(ridge, LEAST))
        self.inverse = np.linalg.inv(part.h + extra * np.eye(len(part.h)))
        self.w = part.w.astype(np.float64).copy()
        power = float(np.einsum("ok,kl,ol->", part.w, part.h, part.w))
        self.scale = part.weight / power if power > 0 else 0.0

    def scores(self) -> np.ndarray:
        """Error that each channel's removal would add, (channels,)."""
        b = self.columns
        block = self.inverse[b[:, :, None], b[:, None, :]]
        if b.shape[1] == 1:
            mine = self.w[:, b[:, 0]]
            variance = np.maximum(block[:, 0, 0], 1e-300)
            return np.asarray(self.scale * np.einsum("oc,oc->c", mine, mine) / variance)
        block = block + (block.trace(axis1=1, axis2=2)[:, None, None] <= 0) * np.eye(b.shape[1])
        mine = self.w[:, b]
        crossed = np.einsum("ocm,ocn->cmn", mine, mine, optimize=True)
        return np.asarray(self.scale * np.einsum("cmm->c", np.linalg.solve(block, crossed)))

    def remove(self, channel: int) -> float:
        """Take a channel out, move its work to the others, and return the error that this adds."""
        b = self.columns[channel]
        rows = self.inverse[b]
        middle = np.linalg.inv(rows[:, b])
        mine = self.w[:, b] @ middle
        added = float(np.einsum("om,om->", mine, self.w[:, b]))
        self.w -= mine @ rows
        self.inverse -= rows.T @ (middle @ rows)
        self.w[:, b] = 0
        self.inverse[b] = 0
        self.inverse[:, b] = 0
        self.inverse[b, b] = 1e-300
        return self.scale * added
