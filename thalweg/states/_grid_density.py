"""A probability density given by its cell averages on a grid."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg._result import RESULTS
from thalweg._types import Array, PyTree, Scalar
from thalweg.states._base import AbstractDensity, is_concrete
from thalweg.states._grid import Grid

# The mass of a user's density may differ from one by what float32 sums lose; more than that is an unnormalised density.
_MASS_TOLERANCE = 1e-4


class GridDensity(AbstractDensity):
    r"""A density $q$ on a [`thalweg.Grid`][], constant on each cell.

    **Arguments:** `values`: the cell averages, of the grid's shape, non-negative, with $\sum_i q_i\,h^d = 1$;
    `grid`: the grid.

    Use `GridDensity.from_function(fn, grid)` for a density given as a function (normalised over the grid) and
    `GridDensity.normalised(values, grid)` for values known up to a factor.

    **Raises:** `ValueError` if the shape is wrong, a value is negative or not finite, or the mass is not one.
    """

    values: Array
    grid: Grid = eqx.field(static=True)

    def __check_init__(self) -> None:
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
                raise ValueError(
                    "`values` must be finite and non-negative with a positive sum; "
                    f"got minimum {float(known.min()):.3g} and sum {float(known.sum()):.3g}."
                )
        return cls(values / mass, grid)

    @classmethod
    def from_function(cls, fn: Callable[..., Any], grid: Grid) -> "GridDensity":
        """The density proportional to `fn` (a function of one point of shape `(dim,)`) at the cell centres."""
        # The values at the centres differ from cell averages by O(h²), the order of the scheme in space.
        return cls.normalised(_vmap_cells(fn, grid.dim)(grid.centres), grid)

    @classmethod
    def from_log_density(cls, log_density: Callable[..., Any], grid: Grid) -> "GridDensity":
        """The density proportional to `exp(log_density)` at the cell centres, without overflow."""
        log_values = _vmap_cells(log_density, grid.dim)(grid.centres)
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
        found = _vmap_cells(fn, self.dim)(self.grid.centres.astype(self.values.dtype)).astype(self.values.dtype)
        return found if self.grid.mask is None else jnp.where(self.grid.mask, found, 0)

    def expect(self, potential: Callable[..., Any]) -> Scalar:
        r"""$\sum_i V(x_i)\,q_i\,h^d$; an empty cell where $V = \infty$ counts nothing."""
        potential_values = self.on_cells(potential)
        wall = jnp.isposinf(potential_values)
        terms = jnp.where(wall, 0, potential_values) * self.values
        in_wall = jnp.any(wall & (self.values > 0))
        return jnp.where(in_wall, jnp.inf, jnp.sum(terms) * self.grid.cell_volume)

    def expect_pair(self, kernel: Callable[..., Any]) -> Scalar:
        r"""$\sum_{ij} W(x_i - x_j)\,q_i q_j\,h^{2d}$, by a fast Fourier transform on the doubled grid (periodic axes
        wrap).
        """
        return jnp.sum(self.values * self.convolve(kernel)) * self.grid.cell_volume

    def convolve(self, kernel: Callable[..., Any]) -> Array:
        r"""$(W * q)(x_i) = \sum_j W(x_i - x_j)\,q_j\,h^d$, shape of the grid; on a periodic axis the nearest image
        is meant.
        """
        displacements, sizes = [], []
        for axis, (n, h) in enumerate(zip(self.grid.shape, self.grid.spacing, strict=True)):
            # A doubled axis holds the displacements -(n-1)…(n-1) without wrapping onto each other.
            size = n if self.grid.is_periodic(axis) else 2 * n
            displacements.append(jnp.fft.fftfreq(size, d=1.0 / size).astype(self.values.dtype) * h)
            sizes.append(size)
        points = jnp.stack(jnp.meshgrid(*displacements, indexing="ij"), axis=-1)
        kernel_values = _vmap_cells(kernel, self.dim)(points).astype(self.values.dtype)
        axes = tuple(range(self.dim))
        spectrum = jnp.fft.rfftn(kernel_values, axes=axes) * jnp.fft.rfftn(self.values, s=sizes, axes=axes)
        full = jnp.fft.irfftn(spectrum, s=sizes, axes=axes)
        return full[tuple(slice(n) for n in self.grid.shape)] * self.grid.cell_volume

    def integrate(self, integrand: Callable[..., Any]) -> Scalar:
        r"""$\sum_i e(q_i, x_i)\,h^d$."""
        points = self.grid.centres.astype(self.values.dtype).reshape(-1, self.dim)
        return jnp.sum(jax.vmap(integrand)(self.values.reshape(-1), points)) * self.grid.cell_volume

    def negative_entropy(self) -> Scalar:
        r"""$\sum_i q_i\log q_i\,h^d$, with $0\log 0 = 0$."""
        # The floor keeps the derivative finite (very negative) at an empty cell; NaN there would spread to all cells.
        floored = jnp.maximum(self.values, jnp.finfo(self.values.dtype).tiny)
        return jnp.sum(self.values * jnp.log(floored)) * self.grid.cell_volume

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


def _vmap_cells(fn: Callable[..., Any], dim: int) -> Callable[..., Any]:
    for _ in range(dim):
        fn = jax.vmap(fn)
    return fn
