"""What a table may name: the public classes of the library, found by asking it, and the arguments that they take.

Nothing is listed by hand: a geometry that is exported is a geometry that a problem file may name.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import jax

import thalweg as tw
from thalweg import energies, geometries, likelihoods, schemes, states, targets
from thalweg._measure import Stationary

# What steps say of themselves is made by schemes only.
_MADE_BY_THE_LIBRARY = frozenset({"StepInfo"})
# Arguments that a problem file cannot give: the key comes from the seed, the reason is for the record.
_NOT_FOR_FILES = frozenset({"key", "reason"})


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a constructor. `kinds` are the alternatives of its annotation."""

    name: str
    kinds: tuple[Any, ...]
    required: bool


@dataclasses.dataclass(frozen=True)
class Constructor:
    """One way to make an object: `written` is its Python name, `function` makes it, `needs_key` if it draws."""

    written: str
    function: Callable[..., Any]
    arguments: dict[str, Argument]
    needs_key: bool = False

    @property
    def required(self) -> frozenset[str]:
        """The arguments that must be given."""
        return frozenset(name for name, argument in self.arguments.items() if argument.required)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A public name with all the ways to make it."""

    name: str
    target: Any
    constructors: tuple[Constructor, ...]

    def is_a(self, kind: Any) -> bool:
        """Whether what this makes is of a class."""
        made = self.target if isinstance(self.target, type) else _returned(self.target)
        return isinstance(made, type) and isinstance(kind, type) and issubclass(made, kind)


ROLES: dict[str, tuple[Any, ...]] = {
    "energy": (energies.AbstractEnergy,),
    "state": (states.AbstractState,),
    "geometry": (geometries.AbstractGeometry,),
    "scheme": (schemes.AbstractScheme,),
}


@functools.cache
def entries() -> dict[str, Entry]:
    """Every class (and function that makes an energy) that a problem file may name, by its name."""
    found: dict[str, Entry] = {}
    for module, prefix in (
        (energies, "tw"),
        (states, "tw"),
        (geometries, "tw"),
        (schemes, "tw"),
        (targets, "tw"),
        (likelihoods, "tw.likelihoods"),
    ):
        for name, thing in vars(module).items():
            public = name in tw.__all__ if prefix == "tw" else not name.startswith(("_", "Abstract"))
            public = public and name not in _MADE_BY_THE_LIBRARY
            makes_energy = inspect.isfunction(thing) and _is_energy(_returned(thing))
            if public and (inspect.isclass(thing) or makes_energy):
                found[name] = Entry(name, thing, _constructors(thing, f"{prefix}.{name}"))
    found["Stationary"] = Entry("Stationary", Stationary, _constructors(Stationary, "tw.Stationary"))
    for name, thing in vars(diffrax).items():
        if inspect.isclass(thing) and issubclass(thing, diffrax.AbstractSolver) and not name.startswith("Abstract"):
            found.setdefault(name, Entry(name, thing, _constructors(thing, f"diffrax.{name}")))
    return found


def candidates(kinds: tuple[Any, ...]) -> dict[str, Entry]:
    """The entries that fit one of the alternatives of an annotation; all of them if anything may stand there."""
    if any(kind is Any for kind in kinds):
        return entries()
    return {name: entry for name, entry in entries().items() if any(entry.is_a(kind) for kind in kinds)}


def role_of(name: str) -> str | None:
    """In which of the four tables a name belongs."""
    entry = entries().get(name)
    roles = [role for role, kinds in ROLES.items() if entry is not None and any(entry.is_a(kind) for kind in kinds)]
    return roles[0] if roles else None


def constructor(function: Callable[..., Any], written: str) -> Constructor:
    """How a function is called, from its signature."""
    arguments, needs_key = {}, False
    for parameter in _signature(function).parameters.values():
        needs_key = needs_key or parameter.name == "key"
        if parameter.name in _NOT_FOR_FILES or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        required = parameter.default is parameter.empty
        arguments[parameter.name] = Argument(parameter.name, alternatives(parameter.annotation), required)
    return Constructor(written, function, arguments, needs_key)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, flat; anything for a missing annotation."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return (Any,)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(kind for member in typing.get_args(annotation) for kind in alternatives(member))
    return (annotation,)


def is_array(kind: Any) -> bool:
    """Whether an annotation means an array, with or without a shape."""
    return getattr(kind, "array_type", None) is not None or (isinstance(kind, type) and issubclass(kind, jax.Array))


def is_tree(kind: Any) -> bool:
    """Whether an annotation means a pytree of arrays."""
    return getattr(kind, "__name__", "").startswith("PyTree")


def is_function(kind: Any) -> bool:
    """Whether an annotation means a function."""
    return typing.get_origin(kind) is typing.get_origin(Callable[..., Any]) or kind is Callable


def item_kinds(kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the items of a sequence may be; empty if no sequence may stand there."""
    found: list[Any] = []
    for kind in kinds:
        origin = typing.get_origin(kind)
        if isinstance(origin, type) and issubclass(origin, Sequence):
            for argument in typing.get_args(kind):
                found.extend(alternatives(argument) if argument is not Ellipsis else ())
    return tuple(found)


def _constructors(thing: Any, written: str) -> tuple[Constructor, ...]:
    ways = [constructor(thing, written)]
    if inspect.isclass(thing):
        for name, method in inspect.getmembers(thing, inspect.ismethod):
            # A class method of the class itself that makes one of it, such as `GridDensity.from_function`.
            if not name.startswith("_") and name in vars(thing) and _returned(method) in (thing, thing.__name__):
                ways.append(constructor(method, f"{written}.{name}"))
    return tuple(ways)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, SyntaxError, ValueError):
        return inspect.signature(function)


def _returned(function: Any) -> Any:
    return getattr(function, "__annotations__", {}).get("return")


def _is_energy(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, energies.AbstractEnergy)
