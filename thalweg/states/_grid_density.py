"""A probability density given by its cell averages on a grid."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg._result import RESULTS
from thalweg._types import Array, PyTree, Scalar
from thalweg.states import _convolution, _faces
from thalweg.states._base import AbstractDensity, is_concrete
from thalweg.states._cell_function import CellFunction
from thalweg.states._grid import Grid

# The mass of a user's density may differ from one by what float32 sums lose; more than that is an unnormalised density.
_MASS_TOLERANCE = 1e-4


class GridDensity(AbstractDensity):
    r"""A density $q$ on a [`thalweg.Grid`][], constant on each cell.

    **Arguments:** `values`: the cell averages, of the grid's shape, non-negative, with $\sum_i q_i\,h^d = 1$;
    `grid`: the grid.

    Use `GridDensity.from_function(fn, grid)` for a density given as a function (normalised over the grid),
    `GridDensity.normalised(values, grid)` for values known up to a factor, and `GridDensity.measure(values, grid)` for
    a measure whose mass need not be one.

    **Raises:** `TypeError` if the values are not floating-point numbers; `ValueError` if the shape is wrong, a value
    is negative or not finite, or the mass is not one.
    """

    values: Array
    grid: Grid = eqx.field(static=True)

    def __check_init__(self) -> None:
        dtype = getattr(self.values, "dtype", None)
        if isinstance(self.values, list | tuple) or (dtype is not None and not jnp.issubdtype(dtype, jnp.floating)):
            raise TypeError(
                "`GridDensity` values must be an array of floating-point numbers; "
                f"got {type(self.values).__name__}{'' if dtype is None else f' of {dtype}'}.\n"
                "Use `jnp.asarray(values, float)`, or `GridDensity.normalised(values, grid)`, which converts."
            )
        if not is_concrete(self.values):
            return
        # NumPy looks at the values: inside a trace even a known array would become an unknown one under jnp.
        values = np.asarray(self.values)
        if values.shape[-self.grid.dim :] != self.grid.shape:
            raise ValueError(
                f"`GridDensity` values must have the grid's shape {self.grid.shape}; got shape {values.shape}."
            )
        if not np.all(np.isfinite(values)):
            raise ValueError("`GridDensity` values must be finite; got NaN or infinity.")
        if np.any(values < 0):
            raise ValueError(f"`GridDensity` values must not be negative; the smallest is {float(values.min()):.3g}.")
        mask = self.grid.mask
        if mask is not None and np.any(np.where(mask, 0, values)):
            raise ValueError(
                "`GridDensity` values must be zero outside of the domain (where `grid.mask` is False).\n"
                "Use `GridDensity.normalised(values, grid)`, which leaves out what lies there."
            )
        axes = tuple(range(-self.grid.dim, 0))
        mass = np.sum(values, axis=axes) * self.grid.cell_volume
        worst = mass.ravel()[np.argmax(np.abs(mass.ravel() - 1))]
        if abs(float(worst) - 1) > _MASS_TOLERANCE:
            raise ValueError(
                f"`GridDensity` values must integrate to one over the grid; got total mass {float(worst):.4g}.\n"
                "Use `GridDensity.normalised(values, grid)` if the values are only known up to a factor."
            )

    @classmethod
    def normalised(cls, values: Any, grid: Grid) -> "GridDensity":
        """The density proportional to `values`, an array of the grid's shape with non-negative entries; what lies
        outside of the domain of a masked grid is left out.
        """
        values = jnp.asarray(values)
        values = values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.zeros(()).dtype)
        if grid.mask is not None and values.shape == grid.shape:
            values = jnp.where(grid.mask, values, 0)
        mass = jnp.sum(values) * grid.cell_volume
        if is_concrete(values):
            if values.shape != grid.shape:
                raise ValueError(f"`values` must have the grid's shape {grid.shape}; got shape {values.shape}.")
            known = np.asarray(values)
            if not np.all(np.isfinite(known)) or np.any(known < 0) or known.sum() <= 0:
                smallest = f"the smallest is {float(known.min()):.3g}"
                wrong = smallest if np.any(known < 0) else f"their sum is {float(known.sum()):.3g}"
                raise ValueError(f"`values` must be finite and non-negative with a positive sum; {wrong}.")
        return cls(values / mass, grid)

    @classmethod
    def measure(cls, values: Any, grid: Grid) -> "GridDensity":
        """The measure with these values, of any positive mass, for geometries that create and destroy mass
        ([`thalweg.HellingerKantorovich`][]); what lies outside of the domain of a masked grid is left out.
        """
        # One class serves both: only the constructor asks for mass one.
        unit = cls.normalised(values, grid)
        kept = jnp.asarray(values).astype(unit.values.dtype)
        kept = kept if grid.mask is None else jnp.where(grid.mask, kept, 0)
        return eqx.tree_at(lambda s: s.values, unit, kept)

    @classmethod
    def from_function(cls, fn: Callable[..., Any], grid: Grid) -> "GridDensity":
        """The density proportional to `fn` (a function of one point of shape `(dim,)`) at the cell centres."""
        # The values at the centres differ from cell averages by O(h²), the order of the scheme in space.
        return cls.normalised(_asked(fn, grid, "from_function"), grid)

    @classmethod
    def from_log_density(cls, log_density: Callable[..., Any], grid: Grid) -> "GridDensity":
        """The density proportional to `exp(log_density)` at the cell centres, without overflow."""
        log_values = _asked(log_density, grid, "from_log_density")
        if grid.mask is not None:
            log_values = jnp.where(grid.mask, log_values, -jnp.inf)
        return cls.normalised(jnp.exp(log_values - jnp.max(log_values)), grid)

    @property
    def dim(self) -> int:
        """The dimension of the grid."""
        return self.grid.dim

    @property
    def knows_density(self) -> bool:
        """True: the values are the density."""
        return True

    @property
    def mass(self) -> Scalar:
        r"""The total mass $\sum_i q_i\,h^d$."""
        return jnp.sum(self.values) * self.grid.cell_volume

    def on_cells(self, fn: Callable[..., Any]) -> Array:
        """A function of one point at all cell centres, in the grid's shape and the dtype of the values; zero at cells
        outside of the domain.
        """
        if isinstance(fn, CellFunction):
            found = fn.on(self.grid, "A function of cell values").astype(self.values.dtype)
        else:
            found = _vmap_cells(fn, self.dim)(self._centres()).astype(self.values.dtype)
        return found if self.grid.mask is None else jnp.where(self.grid.mask, found, 0)

    def _centres(self) -> Array:
        """The cell centres; outside of the domain, where a function need not be finite, some centre inside."""
        points = self.grid.centres.astype(self.values.dtype)
        mask = self.grid.mask
        if mask is None:
            return points
        inside = points[tuple(int(i) for i in np.argwhere(mask)[0])]
        return jnp.where(mask[..., None], points, jnp.broadcast_to(inside, points.shape))

    def expect(self, potential: Callable[..., Any]) -> Scalar:
        r"""$\sum_i V(x_i)\,q_i\,h^d$; an empty cell where $V = \infty$ counts nothing."""
        potential_values = self.on_cells(potential)
        wall = jnp.isposinf(potential_values)
        terms = jnp.where(wall, 0, potential_values) * self.values
        in_wall = jnp.any(wall & (self.values > 0))
        return jnp.where(in_wall, jnp.inf, jnp.sum(terms) * self.grid.cell_volume)

    def expect_pair(self, kernel: Any) -> Scalar:
        r"""$\sum_{ij} W(x_i - x_j)\,q_i q_j\,h^{2d}$, by a fast Fourier transform on the doubled grid (periodic axes
        wrap).
        """
        return jnp.sum(self.values * self.convolve(kernel)) * self.grid.cell_volume

    def convolve(self, kernel: Any) -> Array:
        r"""$(W * q)(x_i) = \sum_j W(x_i - x_j)\,q_j\,h^d$, shape of the grid, zero outside of the domain; on a periodic
        axis the nearest image is meant.

        **Arguments:** `kernel`: a function of one displacement, a member of `tw.kernels` (whose mean over the cell
        around zero is used where the kernel is infinite at zero), or an array of its values at the displacements of
        the cells, odd along each axis, with zero displacement in the middle, zero beyond.

        **Raises:** `ValueError` if an array of values is larger than the grid.
        """
        return _convolution.convolve(kernel, self.values, self.grid)

    def integrate(self, integrand: Callable[..., Any]) -> Scalar:
        r"""$\sum_i e(q_i, x_i)\,h^d$ over the cells of the domain."""
        points, values = self._centres().reshape(-1, self.dim), self.values.reshape(-1)
        mask = self.grid.mask
        if mask is None:
            return jnp.sum(jax.vmap(integrand)(values, points)) * self.grid.cell_volume
        # Outside, e(0) need not be zero nor its derivative finite: neither may enter.
        inside = jnp.asarray(mask.reshape(-1))
        terms = jax.vmap(integrand)(jnp.where(inside, values, 1), points)
        return jnp.sum(jnp.where(inside, terms, 0)) * self.grid.cell_volume

    def negative_entropy(self) -> Scalar:
        r"""$\sum_i q_i\log q_i\,h^d$, with $0\log 0 = 0$."""
        values = self.values if self.grid.mask is None else jnp.where(self.grid.mask, self.values, 0)
        return jnp.sum(_times_log(values)) * self.grid.cell_volume

    def face_gradients(self) -> tuple[Array, ...]:
        r"""For each axis the difference quotient $(q_{i+1} - q_i)/h$ across the face between each cell and the next
        one, in the grid's shape; zero at walls. (At the last cell of a periodic axis the next one is the first.)
        """
        return _faces.face_gradients(self.values, self.grid)

    def gradient_squared(self) -> Array:
        r"""$|\nabla q|^2$ on the cells, shape of the grid: along each axis the mean of the squared differences across
        the two faces of a cell.

        For functionals of a gradient: $\tfrac12\int|\nabla q|^2\,\mathrm dx$ is `0.5 *
        jnp.sum(state.gradient_squared()) * state.grid.cell_volume`, whose first variation is $-\Delta q$ at every
        cell, with no flux through walls as the natural boundary condition. Second order where the normal derivative of
        $q$ is zero at walls; elsewhere the half cells next to the walls are missed, a first-order error of the value.
        """
        return _faces.gradient_squared(self.values, self.grid)

    def moving(self) -> PyTree:
        """The cell values."""
        return self

    def quadrature_weights(self) -> "GridDensity":
        """A cell weighs its volume."""
        return eqx.tree_at(lambda s: s.values, self, jnp.asarray(self.grid.cell_volume, self.values.dtype))

    def admissibility(self) -> Any:
        """Finite and non-negative."""
        result = RESULTS.where(jnp.all(self.values >= 0), RESULTS.successful, RESULTS.negative_density)
        return RESULTS.where(jnp.all(jnp.isfinite(self.values)), result, RESULTS.non_finite)

    def mean(self) -> Array:
        """The mean of the density, shape `(dim,)`."""
        points = self.grid.centres.astype(self.values.dtype)
        return jnp.tensordot(self.values, points, axes=self.dim) * self.grid.cell_volume

    def covariance(self) -> Array:
        r"""The covariance matrix, shape `(dim, dim)`; the width of a cell adds $h^2/12$ on the diagonal."""
        centred = self.grid.centres.astype(self.values.dtype).reshape(-1, self.dim) - self.mean()[None]
        second = jnp.einsum("n,ni,nj->ij", self.values.reshape(-1), centred, centred) * self.grid.cell_volume
        return second + jnp.diag(jnp.asarray(self.grid.spacing, self.values.dtype) ** 2 / 12)


@jax.custom_jvp
def _times_log(values: Array) -> Array:
    """q log q."""
    return values * _log(values)


@_times_log.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # In closed form, since the square of a small density underflows in the second derivative.
    return _times_log(*primals), (1 + _log(*primals)) * tangents[0]


def _log(values: Array) -> Array:
    # The floor keeps the derivative finite (very negative) at an empty cell; NaN there would spread to all cells.
    return jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).tiny))


def _asked(fn: Callable[..., Any], grid: Grid, name: str) -> Array:
    """A user's function at all cell centres."""
    point = jax.ShapeDtypeStruct((grid.dim,), grid.centres.dtype)
    try:
        shape = jnp.shape(eqx.filter_eval_shape(lambda x: jnp.asarray(fn(x)), point))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise ValueError(
            f"The function of `GridDensity.{name}` must accept one point, an array of shape ({grid.dim},), and be "
            f"written with jax.numpy; it failed:\n  {type(error).__name__}: {reason}"
        ) from error
    if shape != ():
        advice = "x[0]" if grid.dim == 1 else "jnp.sum(...)"
        raise ValueError(
            f"The function of `GridDensity.{name}` must return one number for one point of shape ({grid.dim},); got "
            f"shape {shape}.\nA point is an array, also in one dimension: write `{advice}`."
        )
    return _vmap_cells(fn, grid.dim)(grid.centres)


def _vmap_cells(fn: Callable[..., Any], dim: int) -> Callable[..., Any]:
    for _ in range(dim):
        fn = jax.vmap(fn)
    return fn
