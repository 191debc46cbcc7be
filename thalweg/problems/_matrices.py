"""Symmetric matrices with chosen eigenvalues and no random numbers in them."""

from collections.abc import Sequence

import numpy as np


def reflection(dim: int) -> np.ndarray:
    r"""The Householder reflection $I - 2ww^\top/|w|^2$, $w = (1, 2, \dots, d)$: orthogonal, symmetric, its own
    inverse, without zeros.

    Eigenvectors along the axes would hide every mistake in the off-diagonal entries; these do not.
    """
    w = np.arange(1.0, dim + 1)
    return np.eye(dim) - 2 * np.outer(w, w) / (w @ w)


def with_eigenvalues(eigenvalues: Sequence[float] | np.ndarray) -> np.ndarray:
    r"""The symmetric matrix $H\,\mathrm{diag}(\lambda)\,H$ with $H$ = [`reflection`][]; shape `(dim, dim)`."""
    values = np.asarray(eigenvalues, float)
    basis = reflection(len(values))
    return (basis * values) @ basis
