"""What decides a path, as one number: a checkpoint is resumed only by the problem that wrote it.

Functions have no content that can be compared, and their names say little (two lambdas share one). So the *traced* step
is read: every operation, every constant that a function closes over, and every array that goes in. A changed body of a
potential changes the digest; another `num_steps`, `final_time` or `stop` does not, so that a run can be prolonged.
"""

import dataclasses
import enum
import hashlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from thalweg._advance import advance
from thalweg._chunks import Problem, entry_of
from thalweg._compiled import is_array
from thalweg._path import FlowState


def fingerprint(problem: Problem, flow_state: FlowState) -> str:
    """A digest of the step, of what a save holds, of the start and of all numbers that go in, in hexadecimal."""

    def everything(problem: Problem, flow_state: FlowState) -> Any:
        stepped = advance(problem.energy, problem.geometry, problem.scheme, flow_state, problem.key, None)
        return stepped, entry_of(problem, flow_state)

    problem = dataclasses.replace(problem, stop=None, final_time=None, last_step=None)
    traced = eqx.filter_make_jaxpr(everything)(problem, flow_state)[0]
    digest = hashlib.sha256()
    _read_closed(digest.update, traced)
    for leaf in filter(is_array, jax.tree.leaves((problem, flow_state))):
        _read_value(digest.update, leaf)
    return digest.hexdigest()


def _read_closed(update: Callable[[bytes], Any], closed: Any) -> None:
    for constant in closed.consts:
        _read_value(update, constant)
    _read_jaxpr(update, closed.jaxpr)


def _read_jaxpr(update: Callable[[bytes], Any], jaxpr: Any) -> None:
    """Variables are numbered as they come, so the digest depends on the operations alone."""
    numbers: dict[Any, int] = {}

    def read_atom(atom: Any) -> None:
        if isinstance(atom, core.Literal):
            _read_value(update, atom.val)
        else:
            number = numbers.setdefault(atom, len(numbers))
            update(f"%{number}:{atom.aval.str_short()};".encode())

    for variable in (*jaxpr.constvars, *jaxpr.invars):
        read_atom(variable)
    for equation in jaxpr.eqns:
        update(f"\n{equation.primitive.name}(".encode())
        for atom in (*equation.invars, *equation.outvars):
            read_atom(atom)
        for name in sorted(equation.params):
            update(f",{name}=".encode())
            _read_parameter(update, equation.params[name])
    update(b"\nreturn ")
    for atom in jaxpr.outvars:
        read_atom(atom)


def _read_parameter(update: Callable[[bytes], Any], value: Any) -> None:
    if isinstance(value, core.ClosedJaxpr):
        _read_closed(update, value)
    elif isinstance(value, core.Jaxpr):
        _read_jaxpr(update, value)
    elif isinstance(value, tuple | list):
        update(f"{len(value)}[".encode())
        for item in value:
            _read_parameter(update, item)
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        _read_value(update, value)
    elif value is None or isinstance(value, bool | int | float | str | np.dtype):
        update(repr(value).encode())
    elif isinstance(value, enum.Enum):
        update(value.name.encode())
    else:
        # Functions, shardings, names for debugging: what they do is in the operations; their repr may hold an address.
        update(type(value).__name__.encode())


def _read_value(update: Callable[[bytes], Any], value: Any) -> None:
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    update(f"{array.dtype}{array.shape}".encode())
    update(np.ascontiguousarray(array).tobytes())
