r"""A positive definite matrix as a sum of squares along whole numbers of cells.

$$D = \sum_k \lambda_k\,e_k e_k^\top, \qquad \lambda_k \ge 0,\ e_k \in \mathbb Z^d.$$

With it a diffusion with a full matrix is a sum of differences between pairs of cells with non-negative weights: a
reversible jump process, positive and conservative whatever the matrix. (Fluxes through faces alone cannot be both
consistent and positive: their cross derivatives have weights of both signs.) Three offsets do in the plane and six in
space; the more anisotropic the matrix, the further they reach.

**Source:** Selling, J. reine angew. Math. 77 (1874); Conway, Sloane, *Low-dimensional lattices III* (1992); Fehrenbach,
Mirebeau, *Sparse non-negative stencils for anisotropic diffusion*, J. Math. Imaging Vis. 49 (2014).
"""

import itertools

import numpy as np

# Each round lowers the sum of the squared lengths of the superbase; condition numbers to 1e6 take fewer than this.
_MAX_ROUNDS = 200


def selling(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights, shape `(n, m)`, and the offsets, shape `(n, m, dim)`, of `n` symmetric positive definite matrices of
    one, two or three dimensions; m is 1, 3 or 6. The first number of an offset that is not zero is positive.

    **Raises:** `ValueError` if a matrix is not positive definite, or so anisotropic that no superbase is found.
    """
    dim = matrices.shape[-1]
    if np.any(np.linalg.eigvalsh(matrices) <= 0):
        raise ValueError("a mobility matrix must be symmetric and positive definite")
    if dim == 1:
        return matrices[:, 0], np.ones((len(matrices), 1, 1), int)
    base = np.concatenate([np.eye(dim, dtype=int), -np.ones((1, dim), int)])
    base = np.broadcast_to(base, (len(matrices), dim + 1, dim)).copy()
    pairs = list(itertools.combinations(range(dim + 1), 2))
    for _ in range(_MAX_ROUNDS):
        products = np.einsum("nia,nab,njb->nij", base, matrices, base)
        scale = np.einsum("nii->n", products)
        sharp = np.stack([products[:, i, j] for i, j in pairs], axis=1)
        worst = np.argmax(sharp, axis=1)
        acute = sharp[np.arange(len(sharp)), worst] > 1e-13 * scale
        if not acute.any():
            break
        for number, (i, j) in enumerate(pairs):
            rows = np.flatnonzero(acute & (worst == number))
            if len(rows):
                base[rows] = _reflected(base[rows], i, j)
    else:
        raise ValueError("a mobility matrix is too anisotropic for a stencil on the cells")
    weights = np.maximum(-np.stack([products[:, i, j] for i, j in pairs], axis=1), 0)
    offsets = np.stack([_dual(base, i, j) for i, j in pairs], axis=1)
    first = np.take_along_axis(offsets, np.argmax(offsets != 0, axis=2)[..., None], axis=2)
    return weights, offsets * np.sign(first)


def _reflected(base: np.ndarray, i: int, j: int) -> np.ndarray:
    """Selling's step: another superbase, in which the two vectors no longer make an acute angle."""
    new = base.copy()
    new[:, i] = -base[:, i]
    others = [k for k in range(base.shape[1]) if k not in (i, j)]
    if len(others) == 1:
        new[:, others[0]] = base[:, i] - base[:, j]
    else:
        for k in others:
            new[:, k] = base[:, k] + base[:, i]
    return new


def _dual(base: np.ndarray, i: int, j: int) -> np.ndarray:
    """The vector orthogonal to all vectors of the superbase but these two."""
    others = [k for k in range(base.shape[1]) if k not in (i, j)]
    if len(others) == 1:
        e = base[:, others[0]]
        return np.stack([-e[:, 1], e[:, 0]], axis=1)
    return np.cross(base[:, others[0]], base[:, others[1]])
