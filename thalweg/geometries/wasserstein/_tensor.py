r"""The Wasserstein metric on a grid with a matrix-valued mobility: mass moves between pairs of cells.

$m(x, q) = q\,M(x)$ with a symmetric positive definite $M$. Split by Selling's formula, $H^{-1}MH^{-1} = \sum_k
\lambda_k e_k e_k^\top$ with the cell widths $H$, the flow $\nabla\cdot(qM\nabla\xi)$ is a sum over pairs of cells
$(i, i + e_k)$ of $\lambda_k \bar q\,(\xi_{i+e_k} - \xi_i)$: all that is true of fluxes through faces (positive,
conservative, the Gibbs density steady, energy falling) is true of it. Where a partner would lie outside of the domain
there is no pair, which is the wall.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Scalar, ScalarLike
from thalweg.geometries._base import AbstractMetric
from thalweg.geometries.wasserstein._means import arithmetic_mean, logarithmic_mean
from thalweg.geometries.wasserstein._selling import selling
from thalweg.states import Grid, GridDensity, shifted, shifted_back

Offset = tuple[int, ...]


class PairField(eqx.Module):
    """What flows between pairs of cells: for each offset the difference of potentials and the weight times the density,
    in the grid's shape; entry $i$ is the pair of cells $i$ and $i$ + offset.
    """

    differences: tuple[Array, ...]
    mobilities: tuple[Array, ...]
    offsets: tuple[Offset, ...] = eqx.field(static=True)


class TensorMetric(AbstractMetric):
    r"""$\|v\|^2 = \sum_{\text{pairs}} h^d\,\lambda\,\bar q\,(\Delta\xi)^2$ for $v$ with the exchange rates $-\lambda
    \bar q\,\Delta\xi$ between the cells of each pair.
    """

    state: GridDensity
    mobility: Callable[..., Any] = eqx.field(static=True)

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        values, xi = self.state.values, cotangent.regular.values
        mean = logarithmic_mean if cotangent.positive else arithmetic_mean
        offsets, weights = pairs_of(self.mobility, self.state)
        differences = tuple(xi - shifted(xi, offset) for offset in offsets)
        mobilities = tuple(
            mean(values, shifted(values, offset)) * weight for offset, weight in zip(offsets, weights, strict=True)
        )
        field = PairField(differences, mobilities, offsets)
        return Velocity(eqx.tree_at(lambda s: s.values, self.state, _gained(field)), field)

    def norm_squared(self, velocity: Velocity) -> Scalar:
        field = velocity.field
        terms = [jnp.sum(m * d**2) for m, d in zip(field.mobilities, field.differences, strict=True)]
        return sum(terms[1:], start=terms[0]) * self.state.grid.cell_volume

    def move(self, velocity: Velocity, scale: ScalarLike) -> GridDensity:
        moved = self.state.values + scale * _gained(velocity.field)
        return eqx.tree_at(lambda s: s.values, self.state, moved)


def _gained(field: PairField) -> Array:
    gained = jnp.zeros_like(field.differences[0])
    for offset, mobility, difference in zip(field.offsets, field.mobilities, field.differences, strict=True):
        exchange = mobility * difference
        gained = gained - exchange + shifted_back(exchange, offset)
    return gained


def is_matrix(mobility: Callable[..., Any] | None, state: GridDensity) -> bool:
    """Whether a mobility returns matrices, by shapes alone.

    **Raises:** `ValueError` if it returns neither a number nor a matrix.
    """
    if mobility is None:
        return False
    dtype, dim = state.values.dtype, state.dim
    try:
        found = eqx.filter_eval_shape(mobility, jax.ShapeDtypeStruct((dim,), dtype), jax.ShapeDtypeStruct((), dtype))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise ValueError(
            f"`mobility(x, q)` of `Wasserstein` must accept one point of shape ({dim},) and the density there; it "
            f"failed:\n  {type(error).__name__}: {reason}"
        ) from error
    shape = np.shape(found) if not hasattr(found, "shape") else found.shape
    if shape not in ((), (dim, dim)):
        raise ValueError(
            f"`mobility(x, q)` of `Wasserstein` must return a number or a matrix of shape {(dim, dim)}; got shape "
            f"{shape}."
        )
    return shape != ()


def pairs_of(mobility: Callable[..., Any], state: GridDensity) -> tuple[tuple[Offset, ...], tuple[np.ndarray, ...]]:
    r"""The offsets of all pairs, and their weights $\lambda$ (per time and unit of $\xi$), for the density one.

    **Raises:** `ValueError` if the matrix is not symmetric positive definite at some cell; `UnsupportedCombination` if
    it is no multiple of the density.
    """
    return _pairs(mobility, state.grid, jnp.dtype(state.values.dtype).name)


@functools.lru_cache(maxsize=16)
def _pairs(mobility: Callable[..., Any], grid: Grid, dtype: str) -> tuple[tuple[Offset, ...], tuple[np.ndarray, ...]]:
    with jax.ensure_compile_time_eval():
        points = grid.centres.astype(dtype).reshape(-1, grid.dim)
        ask = jax.vmap(mobility, in_axes=(0, None))
        at_one, at_three = (ask(points, jnp.asarray(q, points.dtype)) for q in (1.0, 3.0))
    if _tree.is_traced(at_one) or _tree.is_traced(at_three):
        raise UnsupportedCombination(
            "A matrix-valued mobility must be known before anything is traced: its stencil is chosen from its values.\n"
            "Close over numbers, not over what `jax.grad` or `jax.vmap` trace."
        )
    matrices, tripled = np.asarray(at_one, np.float64), np.asarray(at_three, np.float64)
    inside = np.ones(grid.num_cells, bool) if grid.mask is None else grid.mask.ravel()
    if not np.allclose(tripled[inside], 3 * matrices[inside], rtol=1e-5 if dtype == "float32" else 1e-12):
        raise UnsupportedCombination(
            "A matrix-valued `mobility(x, q)` must be q times a matrix of x: `lambda x, q: q * M(x)`.\n"
            "Mobilities that depend on the density in another way may return a number."
        )
    symmetric = 0.5 * (matrices + matrices.transpose(0, 2, 1))
    if not np.allclose(symmetric[inside], matrices[inside], rtol=1e-8, atol=1e-12 * np.abs(matrices[inside]).max()):
        raise ValueError("The matrix of `mobility(x, q)` must be symmetric at every cell.")
    symmetric[~inside] = np.eye(grid.dim)
    widths = np.asarray(grid.spacing)
    try:
        weights, vectors = selling(symmetric / (widths[:, None] * widths[None, :]))
    except ValueError as error:
        raise ValueError(f"`mobility(x, q)` at a cell: {error}.") from None
    _check_reach(weights, vectors, grid)
    return _gathered(weights, vectors, grid, dtype)


def _check_reach(weights: np.ndarray, vectors: np.ndarray, grid: Grid) -> None:
    """Raise if a pair reaches so far that walls leave it out over much of the grid: its part of the matrix would be
    missing there.
    """
    used = weights > 1e-6 * weights.max(axis=1, keepdims=True)
    for axis, n in enumerate(grid.shape):
        reach = int(np.max(np.abs(np.where(used, vectors[..., axis], 0))))
        if reach > max(1, n // 8):
            raise ValueError(
                f"The matrix of `mobility(x, q)` is stretched so much that it joins cells {reach} apart along axis "
                f"{axis}, which has {n}:\nnear walls its diffusion would be missing. Use at least {8 * reach} cells "
                "there, cells that are stretched as the matrix is, or a matrix less stretched."
            )


def _gathered(weights: np.ndarray, vectors: np.ndarray, grid: Grid, dtype: str) -> Any:
    """One array for each offset that occurs anywhere: half of the weight at each of the two cells, zero where a partner
    is outside.
    """
    kept = [tuple(int(k) for k in row) for row in np.unique(vectors.reshape(-1, grid.dim), axis=0)]
    offsets, arrays = [], []
    for offset in kept:
        own = np.sum(weights * np.all(vectors == np.asarray(offset), axis=2), axis=1).reshape(grid.shape)
        there = tuple(-k for k in offset)
        joined = 0.5 * (own + np.roll(own, there, tuple(range(grid.dim)))) * _has_partner(grid, offset)
        if not joined.any():
            continue
        offsets.append(offset)
        arrays.append(joined.astype(dtype))
    return tuple(offsets), tuple(arrays)


def _has_partner(grid: Grid, offset: Offset) -> np.ndarray:
    there = tuple(-k for k in offset)
    axes = tuple(range(grid.dim))
    found = np.ones(grid.shape, bool) if grid.mask is None else grid.mask & np.roll(grid.mask, there, axes)
    for axis, k in enumerate(offset):
        if not grid.is_periodic(axis):
            beyond = np.arange(grid.shape[axis]) + k
            inside = (beyond >= 0) & (beyond < grid.shape[axis])
            found = found & inside.reshape(tuple(-1 if i == axis else 1 for i in axes))
    return found
