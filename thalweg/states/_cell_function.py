"""A function that is known by one value for each cell of a grid."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array
from thalweg.states._grid import Grid


class CellFunction(eqx.Module):
    """A function of a point, constant on the cells of a grid: the value of the cell in which the point lies.

    It may stand wherever a density on the same cells asks a function at its cell centres. It has no slope inside a
    cell, so nothing that moves points may use it.

    **Arguments:** `values`: of the grid's shape; `grid`: the grid.

    **Raises:** `ValueError` if the shape is not the grid's.
    """

    values: Array
    grid: Grid = eqx.field(static=True)

    def __check_init__(self) -> None:
        shape = getattr(self.values, "shape", None)
        if shape is not None and shape != self.grid.shape:
            raise ValueError(f"Cell values must have the grid's shape {self.grid.shape}; got shape {shape}.")

    def __call__(self, point: Array) -> Array:
        grid = self.grid
        lower, spacing = jnp.asarray(grid.lower, point.dtype), jnp.asarray(grid.spacing, point.dtype)
        index = jnp.floor((point - lower) / spacing).astype(int)
        index = jnp.clip(index, 0, jnp.asarray(np.array(grid.shape) - 1, index.dtype))
        return self.values[tuple(index[i] for i in range(grid.dim))].astype(point.dtype)

    def on(self, grid: Grid, name: str) -> Array:
        """The values, for a density on `grid`; raise `ValueError` if its cells are not these."""
        if not same_cells(self.grid, grid):
            raise ValueError(
                f"{name} is given on another grid than the density's and cannot be used there.\n"
                f"It has shape {self.grid.shape} from {self.grid.lower} to {self.grid.upper}; the density's grid has "
                f"{grid.shape} from {grid.lower} to {grid.upper}."
            )
        return self.values


def same_cells(one: Grid, other: Grid) -> bool:
    """Whether two grids have the same cells (boundaries and masks may differ)."""
    sides: Any = ((grid.lower, grid.upper, grid.shape) for grid in (one, other))
    return next(sides) == next(sides)
