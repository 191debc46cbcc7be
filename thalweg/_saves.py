"""What a path holds of each save, cut out of the buffers of a chunk when it is first asked for."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.tree_util

_NAMES = ("times", "states", "records", "measurements")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class Saves:
    """Arrays with a leading axis of saves: times, states, records and measurements.

    A chunk fills buffers of a fixed size. To cut them to length and to hand the pieces to JAX takes the host longer
    than the whole run of a small problem, so it is left until somebody looks.
    """

    times: Any
    states: Any
    records: Any
    measurements: Any

    @classmethod
    def later(cls, make: Callable[[], tuple[Any, ...]]) -> "Saves":
        """The saves that `make` will return as `(times, states, records, measurements)`; it is called at most once."""
        saves = object.__new__(cls)
        saves.__dict__["_make"] = make
        return saves

    def __getattr__(self, name: str) -> Any:
        # Asked only for what is not there: one of the four before they are made.
        make = self.__dict__.get("_make")
        if make is None or name not in _NAMES:
            raise AttributeError(f"`Saves` has no attribute {name!r}.")
        self.__dict__.update(zip(_NAMES, make(), strict=True))
        self.__dict__.pop("_make", None)
        return self.__dict__[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return Saves, self.parts()

    def parts(self) -> tuple[Any, ...]:
        """The four of them."""
        return self.times, self.states, self.records, self.measurements

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], None]:
        """For JAX."""
        return tuple((jax.tree_util.GetAttrKey(n), v) for n, v in zip(_NAMES, self.parts(), strict=True)), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, ...]) -> "Saves":
        """For JAX."""
        saves = object.__new__(cls)
        saves.__dict__.update(zip(_NAMES, children, strict=True))
        return saves
