"""A record of many small numbers as a few rows: one for each dtype.

Each array that a compiled loop carries, fills and returns costs the host about a microsecond, whatever its size; a step
of a small problem costs little more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree

# A leaf above this many entries is a row of its own, in its own shape: to copy it would cost more than to carry it.
_SMALL = 64


class Place(NamedTuple):
    """Where a leaf is: in which row, from which entry on (`None`: it is the row), and its shape."""

    row: int
    start: int | None
    shape: tuple[int, ...]


class Packing(NamedTuple):
    """How the leaves of a record are laid out in rows: a place for each leaf, a shape and dtype for each row."""

    structure: Any
    places: tuple[Place, ...]
    rows: tuple[tuple[tuple[int, ...], Any], ...]

    def blank(self, count: int) -> list[Any]:
        """Room for so many records: an array with a leading axis for each row."""
        return [jnp.zeros((count, *shape), dtype) for shape, dtype in self.rows]

    def pack(self, record: Any) -> list[Any]:
        """The rows of one record; traced."""
        parts: list[list[Any]] = [[] for _ in self.rows]
        for leaf, place in zip(jax.tree.leaves(record), self.places, strict=True):
            leaf = jnp.asarray(leaf, self.rows[place.row][1])
            parts[place.row].append(leaf if place.start is None else jnp.ravel(leaf))
        return [part[0] if len(part) == 1 else jnp.concatenate(part) for part in parts]

    def unpack(self, rows: list[Any]) -> Any:
        """The record of these rows; traced."""

        def leaf_at(place: Place) -> Any:
            row = rows[place.row]
            if place.start is None:
                return row
            return row[place.start : place.start + _size(place.shape)].reshape(place.shape)

        return jax.tree.unflatten(self.structure, [leaf_at(place) for place in self.places])

    def put(self, rooms: list[Any], index: Any, record: Any) -> list[Any]:
        """The rooms with one record written at `index`; traced."""
        return [room.at[index].set(row) for room, row in zip(rooms, self.pack(record), strict=True)]

    def take(self, rooms: list[Any], start: int, end: int) -> Any:
        """The records from `start` to `end` as a tree of NumPy arrays with a leading axis, which hold on to no room."""
        cut = [np.asarray(room)[start:end] for room in rooms]

        def leaf_at(place: Place) -> np.ndarray:
            row = cut[place.row]
            if place.start is not None:
                row = row[:, place.start : place.start + _size(place.shape)].reshape(end - start, *place.shape)
            return row.copy()

        return jax.tree.unflatten(self.structure, [leaf_at(place) for place in self.places])

    def look_at(self, rooms: list[Any], index: Any, find: Callable[[Any], Any]) -> Any:
        """One leaf of one record, with `find` as in `equinox.tree_at`; traced."""
        number = jax.tree.leaves(find(jax.tree.unflatten(self.structure, range(len(self.places)))))[0]
        place = self.places[number]
        row = rooms[place.row][index]
        return row if place.start is None else row[place.start : place.start + _size(place.shape)].reshape(place.shape)

    @property
    def num_bytes(self) -> int:
        """The memory of one record."""
        return _tree.num_bytes([jax.ShapeDtypeStruct(*row) for row in self.rows])


def packing_of(shapes: Any) -> Packing:
    """The layout of a record of these shapes and dtypes."""
    leaves, structure = jax.tree.flatten(shapes)
    places: list[Place] = []
    rows: list[tuple[tuple[int, ...], Any]] = []
    shared: dict[Any, int] = {}
    for leaf in leaves:
        size, dtype = _size(leaf.shape), leaf.dtype
        if size > _SMALL or jnp.issubdtype(dtype, jax.dtypes.extended):
            places.append(Place(len(rows), None, leaf.shape))
            rows.append((leaf.shape, dtype))
            continue
        row = shared.setdefault(dtype, len(rows))
        if row == len(rows):
            rows.append(((0,), dtype))
        width = rows[row][0][0]
        places.append(Place(row, width, leaf.shape))
        rows[row] = ((width + size,), dtype)
    return Packing(structure, tuple(places), tuple(rows))


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))
