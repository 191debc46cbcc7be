"""What an object is made of, as JSON and arrays, and the way back, which builds only what thalweg itself defines.

Plain values stand for themselves; everything else is a small table with one key that says what it is:

- `{"array": n}` a JAX array, `{"numpy": n}` a NumPy array, `{"number": n}` a NumPy scalar: number n of the arrays;
- `{"key": n, "generator": name}` a typed random key; `{"result": ...}` members of `RESULTS`, by name;
- `{"tuple": [...]}`, `{"list": [...]}`, `{"dict": [[key, value], ...]}`;
- `{"object": class, "fields": {...}}` an instance of one of the classes below, field by field;
- `{"named": name}` a function or foreign object, of which the name alone is kept; thalweg's own generators come back.

A name in a file is looked up in a table of ours and nowhere else: nothing is imported, called or run. Objects are built
field by field without calling their class, since a path's states have one more axis than their class checks.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

# Imported so that every class of theirs is defined, and can be found below.
from thalweg import _measure, energies, generators, geometries, likelihoods, schemes, states, targets  # noqa: F401
from thalweg._errors import CheckpointError
from thalweg._path import FlowState, Path
from thalweg._result import RESULTS
from thalweg._saves import Saves

_FROZEN = (states.Grid, states.NoFlux, states.Periodic, generators.Alpha, Saves)
# What may hold objects of other libraries: of those only the name is kept, and the rest of the path is saved.
_MAY_BE_NAMED = ((FlowState, "memory"), (Path, "extras"))


class NotStored:
    """Stands where a function (or an object of another library) was, of which a file keeps only the name.

    Put the function back before it is needed, for example
    `eqx.tree_at(lambda s: s.family.model, state, model)`; calling this raises.
    """

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise CheckpointError(
            f"The function `{self.name}` was saved by its name only, since a file never brings code with it.\n"
            "Put it back into the loaded object before it is needed, for example:\n"
            "  state = eqx.tree_at(lambda s: s.family.model, path.final.state, model)"
        )

    def __repr__(self) -> str:
        return f"NotStored({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NotStored) and other.name == self.name

    def __hash__(self) -> int:
        return hash(("NotStored", self.name))


@functools.cache
def known_classes() -> dict[str, type]:
    """The classes that can be saved and loaded, by name; where two modules use one name (the boundary condition and the
    family of Dirichlet), by the module's and theirs.
    """

    def below(cls: type) -> Iterator[type]:
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    found: dict[str, list[type]] = {cls.__name__: [cls] for cls in _FROZEN}
    for cls in below(eqx.Module):
        if not cls.__module__.startswith("thalweg.") or cls.__name__.startswith("_"):
            continue
        # Equinox makes a passing subclass of each class while it is initialised: only the one that has a name counts.
        if getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls:
            found.setdefault(cls.__name__, []).append(cls)
    names = {}
    for name, classes in found.items():
        for cls in dict.fromkeys(classes):
            names[name if len(set(classes)) == 1 else f"{cls.__module__}.{name}"] = cls
    return names


@functools.cache
def _names_of_classes() -> dict[type, str]:
    return {cls: name for name, cls in known_classes().items()}


def encode(value: Any, arrays: list[np.ndarray], where: str) -> Any:
    """The JSON of `value`; its arrays are added to `arrays`. `where` names the place for error messages."""
    if isinstance(value, jax.core.Tracer):
        raise CheckpointError(f"`{where}` is a traced value: save outside of `jax.jit`, `jax.grad` and `jax.vmap`.")
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _encode_array(value, arrays, where)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, RESULTS):
        names = np.asarray([name for name, _ in _members()])
        return {"result": names[np.asarray(jax.tree.leaves(value)[0])].tolist()}
    kind = type(value)
    if kind in (tuple, list):
        return {kind.__name__: [encode(item, arrays, f"{where}[{i}]") for i, item in enumerate(value)]}
    if kind is dict:
        pairs = [[encode(k, arrays, where), encode(v, arrays, f"{where}[{k!r}]")] for k, v in value.items()]
        return {"dict": pairs}
    if kind in _names_of_classes():
        return _encode_object(value, arrays, where)
    if callable(value):
        return {"named": _name_of(value)}
    raise CheckpointError(
        f"`{where}` is a {kind.__module__}.{kind.__qualname__}, which cannot be saved; nothing was written.\n"
        "Saved are arrays, numbers, text, tuples, lists, dictionaries and the classes of thalweg."
    )


def _encode_array(value: Any, arrays: list[np.ndarray], where: str) -> Any:
    tag: dict[str, Any] = {"array": len(arrays)}
    if isinstance(value, np.ndarray | np.generic):
        tag = {"numpy" if isinstance(value, np.ndarray) else "number": len(arrays)}
    elif jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        tag = {"key": len(arrays), "generator": str(jax.random.key_impl(value))}
        value = jax.random.key_data(value)
    array = np.asarray(value)
    if array.dtype.kind == "O" or array.dtype.names is not None:
        raise CheckpointError(f"`{where}` is a NumPy array of dtype {array.dtype}, which cannot be saved.")
    arrays.append(array.astype(array.dtype.newbyteorder("="), copy=False))
    return tag


def _encode_object(value: Any, arrays: list[np.ndarray], where: str) -> Any:
    fields = {}
    for field in dataclasses.fields(value):
        part, place, before = getattr(value, field.name), f"{where}.{field.name}", len(arrays)
        try:
            fields[field.name] = encode(part, arrays, place)
        except CheckpointError:
            if (type(value), field.name) not in _MAY_BE_NAMED:
                raise
            del arrays[before:]
            fields[field.name] = {"named": _name_of(type(part))}
    return {"object": _names_of_classes()[type(value)], "fields": fields}


def decode(node: Any, arrays: list[np.ndarray]) -> Any:
    """The value that [`encode`][] described.

    **Raises:** `ValueError`, `KeyError` or `TypeError` if the JSON describes nothing of the kind;
    [`thalweg.CheckpointError`][] if float64 is stored and switched off.
    """
    if node is None or isinstance(node, bool | int | float | str):
        return node
    match node:
        case {"array": int(n)}:
            return _decode_array(arrays[n])
        case {"numpy": int(n)}:
            return arrays[n]
        case {"number": int(n)}:
            return arrays[n][()]
        case {"key": int(n), "generator": str(name)}:
            return jax.random.wrap_key_data(jnp.asarray(arrays[n]), impl=name)
        case {"result": names}:
            index = {name: number for name, number in _members()}
            numbers = np.vectorize(index.__getitem__, otypes=[np.int32])(np.asarray(names))
            return jax.tree.map(lambda _: jnp.asarray(numbers), RESULTS.successful)
        case {"tuple": list(items)}:
            return tuple(decode(item, arrays) for item in items)
        case {"list": list(items)}:
            return [decode(item, arrays) for item in items]
        case {"dict": list(pairs)}:
            return {decode(k, arrays): decode(v, arrays) for k, v in pairs}
        case {"object": str(name), "fields": dict(fields)}:
            return _decode_object(name, fields, arrays)
        case {"named": str(name)}:
            return _own_functions().get(name) or NotStored(name)
    raise ValueError(f"nothing is known by {str(node)[:60]}")


def _decode_array(array: np.ndarray) -> jax.Array:
    with np.errstate(all="ignore"):
        value = jnp.asarray(array)
    if value.dtype != array.dtype:
        raise CheckpointError(
            f"The file holds numbers of dtype {array.dtype}, and JAX is set to {value.dtype}: they would be rounded.\n"
            'Run `jax.config.update("jax_enable_x64", True)` before making any array, then load again.'
        )
    return value


def _decode_object(name: str, fields: dict[str, Any], arrays: list[np.ndarray]) -> Any:
    cls = known_classes()[name]
    names = [field.name for field in dataclasses.fields(cls)]
    if sorted(names) != sorted(fields):
        raise ValueError(
            f"`{name}` has the fields {names} in this version of thalweg, and {sorted(fields)} in the file"
        )
    instance = object.__new__(cls)
    for field in names:
        object.__setattr__(instance, field, decode(fields[field], arrays))
    return instance


def _members() -> list[tuple[str, int]]:
    """The members of `RESULTS` and their numbers, which may change from version to version."""
    items = RESULTS._name_to_item.items()  # pyright: ignore
    return sorted(((name, int(jax.tree.leaves(item)[0])) for name, item in items), key=lambda pair: pair[1])


def _name_of(value: Any) -> str:
    if isinstance(value, NotStored):
        return value.name
    module = getattr(value, "__module__", None) or type(value).__module__
    return f"{module}.{getattr(value, '__qualname__', None) or type(value).__qualname__}"


def _own_functions() -> dict[str, Any]:
    return {_name_of(fn): fn for fn in generators.KNOWN.values()}
