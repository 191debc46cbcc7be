"""Averages of a density over the cells of a box: what a finite-volume value stands for."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from thalweg._types import PointFunction


def cell_averages(
    density: PointFunction, lower: Sequence[float], upper: Sequence[float], shape: Sequence[int], order: int = 6
) -> Float[Array, "..."]:
    r"""$h^{-d}\int_{\text{cell}} q\,\mathrm dx$ for each cell of a box, by a tensor Gauss–Legendre rule.

    Exact for polynomials of degree `2 order - 1` in each variable. A kink inside a cell (the front of a porous-medium
    solution) costs accuracy in that cell only, of the order of the jump in slope times $h/\mathrm{order}^2$.

    **Arguments:** `density`: one point of shape `(dim,)` to a scalar; `lower`, `upper`, `shape`: one entry an axis.

    **Returns:** an array of the given shape.
    """
    nodes, weights = np.polynomial.legendre.leggauss(order)
    widths = [(b - a) / n for a, b, n in zip(lower, upper, shape, strict=True)]
    axes = [a + h * (np.arange(n) + 0.5) for a, h, n in zip(lower, widths, shape, strict=True)]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(shape))
    offsets = np.array(list(itertools.product(nodes, repeat=len(shape)))) * np.array(widths) / 2
    masses = np.array([math.prod(ws) for ws in itertools.product(weights / 2, repeat=len(shape))])
    points, dtype = jnp.asarray(centres), jnp.zeros(()).dtype

    # One node at a time, so that the memory is that of one grid and not of order^dim grids.
    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        offset, mass = node
        return total + mass * jax.vmap(density)(points + offset[None]).astype(dtype), None

    start = jnp.zeros(len(centres), dtype)
    total, _ = jax.lax.scan(add, start, (jnp.asarray(offsets), jnp.asarray(masses)))
    return total.reshape(tuple(shape))
