r"""Functions as points: the distance of two functions counts their difference, and with Sobolev norms its slope too.

In $L^2$ steepest descent is $v = -\delta F/\delta y$, whose fastest rates grow like $h^{-2}$ for functionals of the
slope. In $H^1$ it is $v = -(1 - \ell^2\Delta)^{-1}\,\delta F/\delta y$, which divides the rates by the same growth, so
that explicit steps do not depend on the width of the cells.

The Gram matrices are solved exactly: block by block along a line, by a Fourier transform on a circle, and in the plane
in the product of the eigenvectors of the two axes.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.scipy.linalg import solve_triangular

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Scalar, ScalarLike, State
from thalweg.geometries._base import AbstractGeometry, AbstractMetric, unsupported_state
from thalweg.states import GridFunction, _quartics
from thalweg.states._grid_function import axis_quadrature


class FunctionMetric(AbstractMetric):
    r"""$\|v\|^2 = \int v^2 + \ell^2|\nabla v|^2 + \ell^4 v''^2$, up to the order of the geometry; the same at every
    function.

    $\int v^2$ is the sum with the quadrature weights, so that in $L^2$ the velocity is the first variation itself.
    """

    state: GridFunction
    length: Any
    order: int = eqx.field(static=True)

    distance_kind = "exact"
    is_constant = True

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        xi = cotangent.regular.values
        if self.order > 0:
            solve = _solve_line if self.state.dim == 1 else _solve_plane
            xi = solve(self.state, self._length(), self.order, self.state.node_weights * xi)
        return Velocity(eqx.tree_at(lambda s: s.values, cotangent.regular, -xi))

    def norm_squared(self, velocity: Velocity) -> Scalar:
        return self._square(velocity.tangent.values)

    def move(self, velocity: Velocity, scale: ScalarLike) -> GridFunction:
        return _tree.multiply_add(self.state, scale, velocity.tangent)

    def distance_squared(self, other: GridFunction) -> Scalar:
        return self._square(other.values - self.state.values)

    def chart(self, coordinates: Any) -> GridFunction:
        return _tree.multiply_add(self.state, 1.0, coordinates)

    def matrix(self) -> Array:
        """The Gram matrix of the values at the nodes that move, in flat coordinates, shape `(n, n)`."""
        state, dtype = self.state, self.state.values.dtype
        weights = [np.diag(_gram(state, axis, 0)) for axis in range(state.dim)]
        if state.dim == 1:
            parts = [weights[0], *(_quartics.dense(_gram(state, 0, k)) for k in range(1, self.order + 1))]
        else:
            slopes = [_quartics.dense(_gram(state, axis, 1)) for axis in range(2)]
            mixed = np.kron(slopes[0], weights[1]) + np.kron(weights[0], slopes[1])
            parts = [np.kron(*weights), mixed][: self.order + 1]
        squared = self._length() ** 2
        return sum((squared**k * jnp.asarray(part, dtype) for k, part in enumerate(parts)), start=jnp.zeros((), dtype))

    def _length(self) -> Array:
        return jnp.asarray(self.length, self.state.values.dtype)

    def _square(self, values: Array) -> Scalar:
        state = self.state
        total = jnp.sum(state.node_weights * values**2)
        if self.order == 0:
            return total
        # The difference of two functions with the same values on a Dirichlet side is zero there.
        pads = [(part.start, n - part.stop) for part, n in zip(state.free, state.num_nodes, strict=True)]
        for axis in range(state.dim):
            padded = jnp.pad(values, [pads[axis] if i == axis else (0, 0) for i in range(state.dim)])
            for k in range(1, self.order + 1):
                found = state.along(padded, axis, k) ** 2
                gauss = axis_quadrature(state.grid, axis)[1]
                # Along the other axis the nodes weigh what they weigh in the pairing.
                other = [_gram(state, i, 0) for i in range(state.dim) if i != axis]
                weights = gauss if not other else np.outer(gauss, other[0]) if axis == 0 else np.outer(other[0], gauss)
                total = total + self._length() ** (2 * k) * jnp.sum(jnp.asarray(weights, values.dtype) * found)
        return total


class L2(AbstractGeometry):
    r"""$\|v\|^2 = \int v^2\,\mathrm dx$ on functions: the flow is $\partial_t y = -\delta F/\delta y$.

    For functionals of the slope it is a diffusion: use `tw.Continuous` (a stiff solver) or `tw.Proximal`. Explicit
    steps are stable below about $0.3\,h^2/\partial_{y'y'}L$ only.

    **Source:** Su (2023), the section on functionals.
    """

    def at(self, state: State, memory: Any = None) -> FunctionMetric:
        return _metric(self, state, 1.0, 0)


class Sobolev(AbstractGeometry):
    r"""$\|v\|^2 = \int v^2 + \ell^2|\nabla v|^2\,\mathrm dx$, and $+\,\ell^4 v''^2$ with `order=2`.

    Steepest descent solves $v - \ell^2\Delta v\,(+\,\ell^4\Delta^2 v) = -\delta F/\delta y$ exactly, with $v = 0$ on
    Dirichlet sides. Explicit steps for functionals of the slope (of $y''$ with `order=2`) do not depend on the width
    of the cells.

    **Arguments:** `order`: 1, or 2 in one dimension; `length`: $\ell > 0$, in units of x. Parts of y that vary over
    less than $\ell$ move slower than in $L^2$; a large $\ell$ counts slopes only.

    **Raises:** `ValueError` if `order` is not 1 or 2 or `length` is not positive; `UnsupportedCombination` for order
    2 in two dimensions.

    **Source:** Neuberger, *Sobolev Gradients and Differential Equations* (1997).
    """

    order: int = eqx.field(static=True, default=1)
    length: ScalarLike = 1.0

    def __check_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"`order` of `Sobolev` must be 1 or 2; got {self.order!r}. Order 0 is `tw.L2()`.")
        if not _tree.is_traced(self.length) and not (np.isfinite(float(self.length)) and float(self.length) > 0):
            raise ValueError(f"`length` of `Sobolev` must be a positive finite number; got {self.length}.")

    def at(self, state: State, memory: Any = None) -> FunctionMetric:
        return _metric(self, state, self.length, self.order)


def _metric(geometry: AbstractGeometry, state: State, length: Any, order: int) -> FunctionMetric:
    if not isinstance(state, GridFunction):
        raise unsupported_state(geometry, state, ["GridFunction"])
    if order == 2 and state.dim == 2:
        raise UnsupportedCombination(
            "`Sobolev(order=2)` is there for functions of one variable; this one has two.\n"
            "Use `tw.Sobolev(order=1)`, which makes steps independent of the cells for functionals of the gradient."
        )
    return FunctionMetric(state, length, order)


def _gram(state: GridFunction, axis: int, derivative: int) -> np.ndarray:
    r"""$\int\varphi_i^{(k)}\varphi_j^{(k)}$ of the nodes of an axis that move, by diagonals; for k = 0 the weights."""
    num, periodic, h = state.grid.shape[axis], state.grid.is_periodic(axis), state.grid.spacing[axis]
    free = state.free[axis]
    if derivative == 0:
        return _quartics.node_weights(num, periodic)[free] * h
    diagonals = _quartics.band(num, periodic, derivative)[free] / h ** (2 * derivative - 1)
    if not periodic:
        # Entries of nodes that do not move are dropped.
        width = diagonals.shape[1]
        columns = np.arange(free.start, free.stop)[:, None] + np.arange(width) - width // 2
        diagonals = np.where((columns >= free.start) & (columns < free.stop), diagonals, 0.0)
    return diagonals


def _solve_line(state: GridFunction, length: Array, order: int, right: Array) -> Array:
    """The solution of the Gram matrix of one dimension."""
    higher = [jnp.asarray(_gram(state, 0, k), right.dtype) for k in range(1, order + 1)]
    middle = higher[0].shape[1] // 2
    diagonals = jnp.zeros_like(higher[0]).at[:, middle].set(jnp.asarray(_gram(state, 0, 0), right.dtype))
    for k, part in enumerate(higher, start=1):
        diagonals = diagonals + length ** (2 * k) * part
    if state.grid.is_periodic(0):
        # All rows are the same, shifted: the matrix is a convolution.
        row = jnp.zeros_like(right).at[jnp.arange(2 * middle + 1) - middle].add(diagonals[0])
        spectrum, symbol = jnp.fft.rfft(right), jnp.fft.rfft(row)
        return jnp.fft.irfft(spectrum / symbol.real.astype(spectrum.dtype), n=right.shape[0])
    return _solve_band(diagonals, right)


def _solve_band(diagonals: Array, right: Array) -> Array:
    """A symmetric positive matrix given by its diagonals, by Cholesky factors of blocks one wider than its half."""
    size, width = right.shape[0], diagonals.shape[1]
    block = width // 2 + 1
    num = -(-size // block)
    # Filled up with the identity to whole blocks.
    fill = jnp.zeros((num * block - size, width), right.dtype).at[:, block - 1].set(1)
    diagonals = jnp.concatenate([diagonals, fill]).reshape(num, block, width)
    rights = jnp.pad(right, (0, num * block - size)).reshape(num, block)
    row, column = np.mgrid[:block, :block]
    places = column - row + block - 1
    inside = diagonals[:, row, places]
    # The block to the left of the diagonal: its columns are a block further to the left.
    left = np.where(places >= block, places - block, 0)
    below = jnp.where((places >= block)[None], diagonals[:, row, left], 0)

    def eliminate(carry: tuple[Array, Array], entry: tuple[Array, Array, Array]) -> Any:
        factor, solved = carry
        own, coupling, value = entry
        lower = solve_triangular(factor, coupling.T, lower=True).T
        factor = jnp.linalg.cholesky(own - lower @ lower.T)
        solved = solve_triangular(factor, value - lower @ solved, lower=True)
        return (factor, solved), (factor, lower, solved)

    begin = (jnp.eye(block, dtype=right.dtype), jnp.zeros(block, right.dtype))
    _, (factors, lowers, solved) = jax.lax.scan(eliminate, begin, (inside, below, rights))
    after = jnp.concatenate([lowers[1:], jnp.zeros_like(lowers[:1])])

    def substitute(following: Array, entry: tuple[Array, Array, Array]) -> Any:
        factor, lower, value = entry
        found = solve_triangular(factor, value - lower.T @ following, lower=True, trans=1)
        return found, found

    _, found = jax.lax.scan(substitute, jnp.zeros(block, right.dtype), (factors, after, solved), reverse=True)
    return found.reshape(-1)[:size]


def _solve_plane(state: GridFunction, length: Array, order: int, right: Array) -> Array:
    r"""The solution of $W_0\otimes W_1 + \ell^2(K_0\otimes W_1 + W_0\otimes K_1)$ in the eigenvectors of $(K_i, W_i)$.

    Lynch, Rice, Thomas, *Direct solution of partial difference equations by tensor product methods*, Numer. Math. 6
    (1964).
    """
    del order
    pairs = [scipy.linalg.eigh(_quartics.dense(_gram(state, i, 1)), np.diag(_gram(state, i, 0))) for i in range(2)]
    vectors = [jnp.asarray(pair[1], right.dtype) for pair in pairs]
    rates = jnp.asarray(pairs[0][0][:, None] + pairs[1][0][None], right.dtype)
    spectrum = vectors[0].T @ right @ vectors[1] / (1 + length**2 * rates)
    return vectors[0] @ spectrum @ vectors[1].T
