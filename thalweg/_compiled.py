"""Compiled calls with as little as possible around them.

What is an array in the arguments is traced, everything else is part of the program, as with `equinox.filter_jit`; but
the program is looked up once by the structure of the arguments, and called with nothing but the list of arrays. A small
problem lasts some tens of microseconds, so what the host does around it counts.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

_LARGEST = 256
_programs: OrderedDict[Any, Callable[[list[Any]], Any]] = OrderedDict()


class Call(NamedTuple):
    """A compiled function and the arrays that it is to be called with: `call.program(call.arrays)`."""

    program: Callable[[list[Any]], Any]
    arrays: list[Any]


def prepared(fn: Callable[..., Any], *args: Any) -> Call:
    """`fn(*args)` as a compiled call, not yet made; compiled once for each function and structure of its arguments.

    `fn` must be a function of a module, not one made for the call, and return arrays only.
    """
    leaves, structure = jax.tree.flatten(args)
    traced = tuple(is_array(leaf) for leaf in leaves)
    fixed = tuple(None if array else _Fixed(leaf) for leaf, array in zip(leaves, traced, strict=True))
    arrays = [leaf for leaf, array in zip(leaves, traced, strict=True) if array]
    key = (fn, structure, fixed)
    program = _programs.get(key)
    if program is None:
        program = jax.jit(_rebuilt(fn, structure, fixed), compiler_options=compiler_options())
        _programs[key] = program
        while len(_programs) > _LARGEST:
            _programs.popitem(last=False)
    else:
        _programs.move_to_end(key)
    return Call(program, arrays)


def call(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`, compiled."""
    program, arrays = prepared(fn, *args)
    return program(arrays)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is traced: an array of JAX or NumPy."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _rebuilt(fn: Callable[..., Any], structure: Any, fixed: tuple[Any, ...]) -> Callable[[list[Any]], Any]:
    def program(arrays: list[Any]) -> Any:
        given = iter(arrays)
        leaves = [next(given) if leaf is None else leaf.value for leaf in fixed]
        return fn(*jax.tree.unflatten(structure, leaves))

    return program


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """What the compiler is told of our programs, and of them alone.

    On a CPU it has two ways to write the kernels of fused operations. The older one takes half as long to compile, and
    a loop of steps has a hundred of them. The kernels are about as fast: measured on a loaded machine, a JKO flow was
    faster, a flow in the plane the same, one of particles with a kernel density a quarter slower.
    """
    if jax.default_backend() != "cpu":
        return None
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(1.0).compile()
    except Exception:  # A compiler that does not know the option says so in ways that change from release to release.
        return None
    return options


class _Fixed:
    """A leaf that is part of the program. Equal where type and value are (`1` and `1.0` give different programs), and
    known by identity where it cannot be hashed.
    """

    __slots__ = ("_hash", "value")

    def __init__(self, value: Any):
        self.value = value
        try:
            self._hash = hash(value)
        except TypeError:
            self._hash = None

    def __hash__(self) -> int:
        return id(self.value) if self._hash is None else self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Fixed) or type(self.value) is not type(other.value):
            return False
        return self.value is other.value or (self._hash is not None and bool(self.value == other.value))
