"""A rectangular grid of cells with its boundary conditions."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp

from thalweg._types import Array


@dataclasses.dataclass(frozen=True)
class NoFlux:
    """A wall: no mass crosses it (homogeneous Neumann condition on the flux)."""


@dataclasses.dataclass(frozen=True)
class Periodic:
    """The two opposite sides are the same: what leaves on one side comes in on the other."""


Boundary = NoFlux | Periodic


@dataclasses.dataclass(frozen=True, init=False)
class Grid:
    r"""A rectangle cut into equal cells; a density has one value per cell.

    **Arguments:** `lower`, `upper`: the corners, numbers in one dimension and tuples otherwise; `shape`: the number
    of cells along each axis; `boundary`: `tw.NoFlux()` (default), `tw.Periodic()`, or a tuple with one of them for
    each axis.

    `grid.centres` has shape `(*shape, dim)`; `grid.spacing` holds the cell widths $h$; `grid.cell_volume` is $\prod h$.

    **Raises:** `ValueError` if `lower >= upper`, if an axis has fewer than three cells, or if the lengths disagree.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    shape: tuple[int, ...]
    boundary: tuple[Boundary, ...]

    def __init__(
        self,
        lower: float | Sequence[float],
        upper: float | Sequence[float],
        shape: int | Sequence[int],
        boundary: Boundary | Sequence[Boundary] = NoFlux(),
    ):
        lower, upper = _floats(lower), _floats(upper)
        shape = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
        boundary = (boundary,) * len(shape) if isinstance(boundary, NoFlux | Periodic) else tuple(boundary)
        if not len(lower) == len(upper) == len(shape) == len(boundary):
            raise ValueError(
                "`lower`, `upper`, `shape` and `boundary` of a `Grid` must name the same number of axes; "
                f"got {len(lower)}, {len(upper)}, {len(shape)} and {len(boundary)}."
            )
        if not all(math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(lower, upper, strict=True)):
            raise ValueError(f"A `Grid` needs finite lower < upper on every axis; got lower={lower}, upper={upper}.")
        if min(shape) < 3:
            raise ValueError(f"A `Grid` needs at least three cells along each axis; got shape={shape}.")
        if not all(isinstance(side, NoFlux | Periodic) for side in boundary):
            raise ValueError(f"`boundary` must be `tw.NoFlux()` or `tw.Periodic()` for each axis; got {boundary}.")
        for name, value in (("lower", lower), ("upper", upper), ("shape", shape), ("boundary", boundary)):
            object.__setattr__(self, name, value)

    @property
    def dim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def num_cells(self) -> int:
        """The number of cells."""
        return math.prod(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """The width of a cell along each axis."""
        return tuple((b - a) / n for a, b, n in zip(self.lower, self.upper, self.shape, strict=True))

    @property
    def cell_volume(self) -> float:
        """The volume of a cell."""
        return math.prod(self.spacing)

    def axis_centres(self, axis: int) -> Array:
        """The cell centres along one axis, shape `(shape[axis],)`."""
        numbers = jnp.arange(self.shape[axis], dtype=jnp.zeros(()).dtype)
        return self.lower[axis] + (numbers + 0.5) * self.spacing[axis]

    @property
    def centres(self) -> Array:
        """The cell centres, shape `(*shape, dim)`."""
        return jnp.stack(jnp.meshgrid(*(self.axis_centres(i) for i in range(self.dim)), indexing="ij"), axis=-1)

    def is_periodic(self, axis: int) -> bool:
        """Whether the two ends of an axis are joined."""
        return isinstance(self.boundary[axis], Periodic)


def _floats(value: float | Sequence[float]) -> tuple[float, ...]:
    if isinstance(value, int | float):
        return (float(value),)
    return tuple(float(entry) for entry in value)
