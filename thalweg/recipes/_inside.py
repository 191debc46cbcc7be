r"""A minimisation inside a function that JAX traces: one pure function, with the derivative of its minimiser.

Where $\nabla_x f(x^*, \theta) = 0$ with a positive definite Hessian H, the minimiser moves with the data by $\mathrm
dx^* = -H^{-1}\,\partial_\theta\nabla_x f\,\mathrm d\theta$ (the implicit function theorem), whatever way the steps took
to it. To differentiate through the steps would be wrong besides being dear: they end when x no longer moves.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._launch import run_inside
from thalweg._path import Path
from thalweg._types import Array, PyTree
from thalweg.energies import as_energy
from thalweg.recipes._ending import result_inside
from thalweg.states import moving


def minimise_inside(fn: Callable[..., Any], x0: PyTree, choose: Callable[[], dict[str, Any]]) -> Path:
    """The path from the start to the end; its states and energies are differentiable in what the function reads."""
    converted = eqx.filter_closure_convert(fn, x0)
    frozen = _tree.stop_gradient(converted)
    path = run_inside(frozen, _tree.stop_gradient(x0), choose)
    path = Path.but(path, result=result_inside(path, as_energy(frozen)))
    state = path.final.state
    flat, unravel = ravel_pytree(moving(state))
    data, rest = eqx.partition(converted, eqx.is_inexact_array)

    def value(data: Any, z: Array) -> Array:
        return jnp.asarray(eqx.combine(data, rest)(eqx.combine(unravel(z), state)))

    end = _attached(value, data, flat)
    moved = eqx.combine(unravel(end), state)
    first, last = value(data, ravel_pytree(moving(_tree.stop_gradient(x0)))[0]), value(data, end)
    changes = jnp.stack([first, last]) - jax.lax.stop_gradient(jnp.stack([first, last]))
    energies = path.energies + changes.astype(path.energies.dtype)
    states = jax.tree.map(lambda saves, leaf: saves.at[-1].set(leaf), moving(path.states), moving(moved))
    saves = type(path.saves)(
        path.times, eqx.combine(states, path.states), {**path.records, "energies": energies}, path.measurements
    )
    return Path.but(path, saves=saves, final=eqx.tree_at(lambda final: final.state, path.final, moved))


def _attached(value: Callable[[Any, Array], Array], data: Any, minimiser: Array) -> Array:
    @jax.custom_jvp
    def attach(data: Any, z: Array) -> Array:
        del data
        return z

    @attach.defjvp
    def rule(primals: tuple[Any, Array], tangents: tuple[Any, Array]) -> tuple[Array, Array]:
        data, z = primals
        slope = lambda data: jax.grad(value, argnums=1)(data, z)  # noqa: E731
        change = jax.jvp(slope, (data,), (tangents[0],))[1]
        hessian = jax.hessian(value, argnums=1)(data, z)
        return z, -jnp.linalg.solve(hessian, change)

    return attach(data, minimiser)
