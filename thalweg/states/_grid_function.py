"""A real function on a grid, by its values at the corners of the cells: what functionals of functions are minimised
over.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._result import RESULTS
from thalweg._types import Array, PyTree, Scalar
from thalweg.states import _quartics
from thalweg.states._base import AbstractState, is_concrete
from thalweg.states._grid import Grid, Periodic


class Dirichlet(eqx.Module):
    """A side where the values of a function are given: they do not move.

    **Arguments:** `value`: a number, an array with one value for each node of the side, or a function of one point of
    shape `(dim,)`.
    """

    value: Any

    def __check_init__(self) -> None:
        value = self.value
        if callable(value) or _tree.is_traced(value) or not eqx.is_array_like(value):
            return
        if not np.all(np.isfinite(np.asarray(value, dtype=float))):
            raise ValueError("The `value` of `Dirichlet` must be finite; it holds NaN or infinity.")


class Natural(eqx.Module):
    r"""A side where the values are free: at a minimum $\partial L/\partial y' = 0$ there, the natural condition."""


class Jet(NamedTuple):
    """A function and its derivatives at quadrature points.

    `points`: shape `(n, dim)`; `weights`: `(n,)`, their sum is the volume of the grid; `value`: `(n,)`; `gradient`:
    `(n,)` in one dimension, else `(n, dim)`; `hessian`: `(n,)` or `(n, dim, dim)`, or `None` where not asked for.
    """

    points: Array
    weights: Array
    value: Array
    gradient: Array
    hessian: Array | None


class GridFunction(AbstractState):
    r"""A real function $y$ on a [`thalweg.Grid`][] of one or two dimensions, by its values at the corners of the cells.

    Between the nodes it is once continuously differentiable, a quartic on each cell; `function(point)` evaluates it.
    It is a function, not a density: it may be negative, and no mass is conserved.

    **Arguments:** `values`: the values at the nodes that move, those on Dirichlet sides being left out: for n cells
    along an axis n + 1 nodes, less one for each Dirichlet side, and n on a periodic axis; `grid`: at least eight cells
    along each axis, whose `boundary` says which axes are periodic; `boundary`: the other sides: `tw.Natural()`
    (default), `tw.Dirichlet(value)`, a pair (lower, upper) in one dimension, and in two dimensions one of these for
    each axis. A corner of two Dirichlet sides belongs to that of the first axis.

    `GridFunction.from_function(fn, grid, boundary)` takes a function of one point of shape `(dim,)`.

    **Raises:** `ValueError` if the grid has more than two dimensions or too few cells, the values have the wrong shape,
    or a value is not finite.
    """

    values: Array
    boundary: tuple[tuple[Dirichlet | Natural, ...], ...]
    grid: Grid = eqx.field(static=True)

    def __init__(self, values: Any, grid: Grid, boundary: Any = None):
        sides = _sides(grid, boundary)
        values = jnp.asarray(values)
        values = values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.zeros(()).dtype)
        self.values = values
        self.grid = grid
        self.boundary = tuple(
            tuple(_resolved(side, grid, axis, end, values.dtype) for end, side in enumerate(pair))
            for axis, pair in enumerate(sides)
        )

    def __check_init__(self) -> None:
        shape = tuple(len(range(*part.indices(n))) for part, n in zip(self.free, self.num_nodes, strict=True))
        if self.values.shape[-self.dim :] != shape:
            raise ValueError(
                f"`GridFunction` values must have shape {shape}, one for each node that moves; got shape "
                f"{self.values.shape}.\n(A grid of shape {self.grid.shape} has {self.num_nodes} nodes; those on "
                "Dirichlet sides do not move.)"
            )
        if is_concrete(self.values) and not np.all(np.isfinite(np.asarray(self.values))):
            raise ValueError("`GridFunction` values must be finite; got NaN or infinity.")

    @classmethod
    def from_function(cls, fn: Callable[..., Any], grid: Grid, boundary: Any = None) -> "GridFunction":
        """The function `fn` of one point of shape `(dim,)`; on Dirichlet sides the given values take its place."""
        sides = _sides(grid, boundary)
        points = _nodes(grid)[tuple(_free(n, pair) for n, pair in zip(_num_nodes(grid), sides, strict=True))]
        return cls(_on_points(fn, points, "fn"), grid, boundary)

    @property
    def dim(self) -> int:
        """The dimension of the domain."""
        return self.grid.dim

    @property
    def num_nodes(self) -> tuple[int, ...]:
        """The number of nodes along each axis, with those that do not move."""
        return _num_nodes(self.grid)

    @property
    def free(self) -> tuple[slice, ...]:
        """Which nodes move, along each axis."""
        return tuple(_free(n, pair) for n, pair in zip(self.num_nodes, self.boundary, strict=True))

    @property
    def nodes(self) -> Array:
        """All nodes, shape `(*num_nodes, dim)`."""
        return _nodes(self.grid).astype(self.values.dtype)

    @property
    def nodal_values(self) -> Array:
        """The values at all nodes, with those that are given; leading axes (of saves) stay."""
        values = self.values
        lead = values.shape[: values.ndim - self.dim]
        # The sides of the last axis first, without corners: these belong to the first axis.
        for axis in reversed(range(self.dim)):
            place = values.ndim - self.dim + axis
            parts = [values]
            for end, side in enumerate(self.boundary[axis]):
                if isinstance(side, Natural):
                    continue
                given = jnp.asarray(side.value, values.dtype)
                given = given[self.free[0]] if self.dim == 2 and axis == 1 else given
                given = jnp.expand_dims(jnp.broadcast_to(given, (*lead, *given.shape)), place)
                parts.insert(0 if end == 0 else len(parts), given)
            values = jnp.concatenate(parts, axis=place)
        return values

    def along(self, values: Array, axis: int, derivative: int) -> Array:
        """Values at all nodes of one axis taken to a derivative at the quadrature points of that axis."""
        windows, table = _quartics.tables(self.grid.shape[axis], self.grid.is_periodic(axis), derivative)
        table = table / self.grid.spacing[axis] ** derivative
        moved = jnp.moveaxis(values, axis, 0)[windows]
        found = jnp.einsum("pw,pw...->p...", jnp.asarray(table, values.dtype), moved)
        return jnp.moveaxis(found, 0, axis)

    def jet(self, num_derivatives: int = 1) -> Jet:
        """The function with its first, or first and second derivatives, at the quadrature points of all cells."""
        values, dtype = self.nodal_values, self.values.dtype
        axes = [axis_quadrature(self.grid, axis) for axis in range(self.dim)]
        points = np.stack(np.meshgrid(*(x for x, _ in axes), indexing="ij"), axis=-1).reshape(-1, self.dim)
        weights = axes[0][1] if self.dim == 1 else np.outer(axes[0][1], axes[1][1]).reshape(-1)
        place = (jnp.asarray(points, dtype), jnp.asarray(weights, dtype))
        if self.dim == 1:
            found = [self.along(values, 0, k) for k in range(num_derivatives + 1)]
            return Jet(*place, found[0], found[1], found[2] if num_derivatives == 2 else None)
        first = [self.along(values, 0, k) for k in range(num_derivatives + 1)]
        d = lambda i, j: self.along(first[i], 1, j).reshape(-1)  # noqa: E731
        gradient = jnp.stack([d(1, 0), d(0, 1)], axis=-1)
        hessian = None
        if num_derivatives == 2:
            mixed = d(1, 1)
            hessian = jnp.stack([d(2, 0), mixed, mixed, d(0, 2)], axis=-1).reshape(-1, 2, 2)
        return Jet(*place, d(0, 0), gradient, hessian)

    def __call__(self, point: Any) -> Scalar:
        """The value at one point of shape `(dim,)` (or a number in one dimension) inside the grid."""
        values = self.nodal_values
        point = jnp.asarray(point, values.dtype).reshape(self.dim)
        for axis in range(self.dim):
            num, periodic = self.grid.shape[axis], self.grid.is_periodic(axis)
            windows, matrices = _quartics.cells(num, periodic)
            place = (point[axis] - self.grid.lower[axis]) / self.grid.spacing[axis]
            place = place % num if periodic else place
            cell = jnp.clip(jnp.floor(place).astype(int), 0, num - 1)
            row = jnp.stack([jnp.asarray(part) for part in _quartics.basis(place - cell.astype(place.dtype), 0)])
            row = row @ jnp.asarray(matrices, values.dtype)[cell]
            values = jnp.tensordot(row, values[jnp.asarray(windows)[cell]], axes=1)
        return values

    def moving(self) -> PyTree:
        """The values at the nodes that are not on Dirichlet sides."""
        nothing = jax.tree.map(lambda leaf: None, self)
        return eqx.tree_at(lambda s: s.values, nothing, self.values, is_leaf=lambda leaf: leaf is None)

    def quadrature_weights(self) -> PyTree:
        r"""A node weighs $\int\varphi_j$, about the volume of a cell; less at a natural side."""
        return eqx.tree_at(lambda s: s.values, self.moving(), self.node_weights)

    @property
    def node_weights(self) -> Array:
        """The quadrature weights of the nodes that move, with the shape of `values`."""
        parts = [axis_weights(self, axis) for axis in range(self.dim)]
        weights = parts[0] if self.dim == 1 else np.outer(parts[0], parts[1])
        return jnp.asarray(weights, self.values.dtype)

    def admissibility(self) -> Any:
        """Finite."""
        return RESULTS.where(_tree.all_finite(self.values), RESULTS.successful, RESULTS.non_finite)


def axis_weights(state: GridFunction, axis: int) -> np.ndarray:
    """The weights of the nodes of one axis that move."""
    grid = state.grid
    weights = _quartics.node_weights(grid.shape[axis], grid.is_periodic(axis)) * grid.spacing[axis]
    return weights[state.free[axis]]


def axis_quadrature(grid: Grid, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The quadrature points of one axis and their weights."""
    h = grid.spacing[axis]
    where, places, weights = _quartics.quadrature(grid.shape[axis], grid.is_periodic(axis))
    return grid.lower[axis] + h * (where + places), h * weights


def _num_nodes(grid: Grid) -> tuple[int, ...]:
    return tuple(n if grid.is_periodic(axis) else n + 1 for axis, n in enumerate(grid.shape))


def _nodes(grid: Grid) -> Array:
    axes = [a + h * np.arange(n) for a, h, n in zip(grid.lower, grid.spacing, _num_nodes(grid), strict=True)]
    return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1), jnp.zeros(()).dtype)


def _free(num: int, sides: tuple[Any, ...]) -> slice:
    if not sides:
        return slice(0, num)
    return slice(int(isinstance(sides[0], Dirichlet)), num - int(isinstance(sides[1], Dirichlet)))


def _sides(grid: Grid, boundary: Any) -> tuple[tuple[Dirichlet | Natural, ...], ...]:
    """The two conditions of each axis, none for a periodic one."""
    if not isinstance(grid, Grid):
        raise ValueError(f"`grid` of a `GridFunction` must be a `tw.Grid`; got {type(grid).__name__}.")
    if grid.dim > 2 or min(grid.shape) < _quartics.FEWEST_CELLS:
        raise ValueError(
            f"A `GridFunction` needs a grid of one or two dimensions with at least {_quartics.FEWEST_CELLS} cells "
            f"along each axis; got shape {grid.shape}."
        )
    kinds = (Dirichlet, Natural, Periodic)
    if boundary is None or isinstance(boundary, kinds):
        entries: Any = (boundary,) * grid.dim
    elif isinstance(boundary, tuple | list):
        is_pair = grid.dim == 1 and len(boundary) == 2
        entries = (tuple(boundary),) if is_pair else tuple(boundary)
    else:
        entries = (boundary,)
    pairs = [entry if isinstance(entry, tuple | list) else (entry, entry) for entry in entries]
    told = all(len(pair) == 2 and all(side is None or isinstance(side, kinds) for side in pair) for pair in pairs)
    if len(pairs) != grid.dim or not told:
        raise ValueError(
            "`boundary` must be `tw.Dirichlet(value)` or `tw.Natural()`, a pair (lower, upper) of them in one "
            f"dimension,\nor one of these for each axis; got {boundary!r} for {grid.dim} dimension(s)."
        )
    found: list[tuple[Dirichlet | Natural, ...]] = []
    for axis, pair in enumerate(pairs):
        joined = grid.is_periodic(axis)
        # A condition that is given for all axes is meant for those that have sides.
        wrong = isinstance(boundary, tuple | list) and any(isinstance(side, Dirichlet | Natural) for side in pair)
        if (joined and wrong) or (not joined and any(isinstance(side, Periodic) for side in pair)):
            raise ValueError(
                f"Axis {axis} of the grid is {'' if joined else 'not '}periodic, so `boundary` cannot be {pair} there; "
                "a function is periodic\nwhere its grid is: `tw.Grid(lower, upper, shape, boundary=tw.Periodic())`."
            )
        found.append(() if joined else tuple(Natural() if side is None else side for side in pair))  # pyright: ignore
    return tuple(found)


def _resolved(side: Any, grid: Grid, axis: int, end: int, dtype: Any) -> Dirichlet | Natural:
    """The condition with its values as an array: shape `()` in one dimension, else one value for each node."""
    if isinstance(side, Natural):
        return side
    points = jnp.take(_nodes(grid), -end, axis=axis)
    if callable(side.value):
        given = _on_points(side.value, points, "`value` of `Dirichlet`")
    else:
        given = jnp.asarray(side.value)
        if given.ndim > 0 and given.shape != points.shape[:-1]:
            raise ValueError(
                f"`value` of `Dirichlet` must be a number or have shape {points.shape[:-1]}, one value for each node "
                f"of its side; got shape {given.shape}."
            )
        given = jnp.broadcast_to(given, points.shape[:-1])
    if is_concrete(given) and not np.all(np.isfinite(np.asarray(given))):
        raise ValueError("The values on a Dirichlet side must be finite; they hold NaN or infinity.")
    return Dirichlet(given.astype(dtype))


def _on_points(fn: Callable[..., Any], points: Array, name: str) -> Array:
    """A function of one point at points of shape `(..., dim)`."""
    flat = points.reshape(-1, points.shape[-1])
    values = jax.vmap(lambda point: jnp.asarray(fn(point)))(flat)
    # In one dimension a point has one entry, and x → x² returns an array with one.
    if values.size != flat.shape[0]:
        raise ValueError(
            f"{name} must return a number at a point of shape {flat.shape[1:]}; got shape {values.shape[1:]}."
        )
    return values.reshape(points.shape[:-1]).astype(points.dtype)
