"""A rectangular grid of cells with its boundary conditions, and the cells of it that belong to the domain."""

import base64
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array


@dataclasses.dataclass(frozen=True)
class NoFlux:
    """A wall: no mass crosses it (homogeneous Neumann condition on the flux)."""


@dataclasses.dataclass(frozen=True)
class Periodic:
    """The two opposite sides are the same: what leaves on one side comes in on the other."""


Boundary = NoFlux | Periodic


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Grid:
    r"""A rectangle cut into equal cells; a density has one value per cell.

    **Arguments:** `lower`, `upper`: the corners, numbers in one dimension and tuples otherwise; `shape`: the number
    of cells along each axis; `boundary`: `tw.NoFlux()` (default), `tw.Periodic()`, or a tuple with one of them for
    each axis; `mask`: which cells belong to the domain, a boolean array of the grid's shape or a function of one point
    (asked at the cell centres); `None` (default) is all of them. The faces of the other cells are walls: obstacles, or
    what a room of another shape leaves out.

    `grid.centres` has shape `(*shape, dim)`; `grid.spacing` holds the cell widths $h$; `grid.cell_volume` is $\prod h$.

    **Raises:** `ValueError` if `lower >= upper`, if an axis has fewer than three cells, if the lengths disagree, or if
    the mask has another shape or leaves no cell.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    shape: tuple[int, ...]
    boundary: tuple[Boundary, ...]
    # The mask as text: a grid is compared, hashed and stored as a static part of every density on it.
    domain: str | None

    def __init__(
        self,
        lower: float | Sequence[float],
        upper: float | Sequence[float],
        shape: int | Sequence[int],
        boundary: Boundary | Sequence[Boundary] = NoFlux(),
        mask: Any = None,
    ):
        lower, upper = _floats(lower), _floats(upper)
        if isinstance(shape, float):
            raise TypeError(f"`shape` of a `Grid` is a whole number of cells for each axis; got {shape}.")
        if isinstance(boundary, str | type):
            raise TypeError(
                "`boundary` of a `Grid` must be `tw.NoFlux()` or `tw.Periodic()` (with parentheses), or one of them "
                f"for each axis; got {boundary!r}."
            )
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
        object.__setattr__(self, "domain", None)
        if mask is not None:
            object.__setattr__(self, "domain", _as_text(_mask_on(self, mask)))

    def __repr__(self) -> str:
        parts = [f"lower={self.lower}", f"upper={self.upper}", f"shape={self.shape}", f"boundary={self.boundary}"]
        if self.mask is not None:
            parts.append(f"mask=<{int(self.mask.sum())} of {self.num_cells} cells>")
        return f"Grid({', '.join(parts)})"

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

    @property
    def mask(self) -> np.ndarray | None:
        """Which cells belong to the domain, of the grid's shape; `None` where all do."""
        return None if self.domain is None else _from_text(self.domain, self.shape)

    def masked(self, mask: Any) -> "Grid":
        """The same grid with the cells left out that `mask` (an array or a function of one point) leaves out too."""
        kept = _mask_on(self, mask)
        return Grid(self.lower, self.upper, self.shape, self.boundary, kept if self.mask is None else kept & self.mask)

    def is_periodic(self, axis: int) -> bool:
        """Whether the two ends of an axis are joined."""
        return isinstance(self.boundary[axis], Periodic)


def _floats(value: float | Sequence[float]) -> tuple[float, ...]:
    if isinstance(value, int | float):
        return (float(value),)
    return tuple(float(entry) for entry in value)


def _mask_on(grid: Grid, mask: Any) -> np.ndarray:
    if callable(mask):
        with jax.ensure_compile_time_eval():
            mask = _on_points(mask, grid.centres)
    mask = np.asarray(mask)
    if mask.shape != grid.shape or mask.dtype != np.bool_:
        raise ValueError(
            f"`mask` of a `Grid` must be a boolean array of its shape {grid.shape}, or a function of one point that "
            f"returns a boolean; got shape {mask.shape} and dtype {mask.dtype}."
        )
    if not mask.any():
        raise ValueError("`mask` of a `Grid` leaves no cell: it must be True inside the domain.")
    return mask


def _on_points(fn: Callable[..., Any], points: Array) -> Any:
    for _ in range(points.ndim - 1):
        fn = jax.vmap(fn)
    return fn(points)


def _as_text(mask: np.ndarray) -> str:
    return base64.b85encode(zlib.compress(np.packbits(mask).tobytes())).decode()


@functools.lru_cache(maxsize=64)
def _from_text(text: str, shape: tuple[int, ...]) -> np.ndarray:
    packed = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8)
    mask = np.unpackbits(packed, count=math.prod(shape)).astype(bool).reshape(shape)
    mask.setflags(write=False)
    return mask
