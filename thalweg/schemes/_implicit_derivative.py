r"""The derivative of an implicit step, whatever found it: the implicit function theorem.

Newton's loop is not differentiated. At its end $G(q^+, \theta) = q^+ - q + \tau\,\nabla_h\cdot(w J(q^+)) = 0$ in all
$\theta$ that the step depends on: the density before, the length of the step, parameters of the energy. So a cotangent
$\bar q$ of $q^+$ becomes $-\lambda^\top \partial_\theta G$ with the adjoint

$$(\partial_q G)^\top\lambda = \bar q,$$

solved by BiCGStab with the transposed multigrid cycle. That is about the work of one Newton step, and only $q^+$ is
kept. Whether it was solved with upstream densities is a constant.

A derivative whose equation is not solved to a relative residual of 1e-6 is NaN: no number rather than a wrong one.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Flag, Scalar
from thalweg.energies import Decomposition
from thalweg.geometries.wasserstein._grid import divergence
from thalweg.schemes._detached import detached
from thalweg.schemes._implicit_euler import Step, implicit_euler, linearised
from thalweg.schemes._implicit_flux import fluxes_and_rates, least_density
from thalweg.states import GridDensity
from thalweg.transport._unsymmetric import bicgstab

_GOAL = 1e-12
_SOLVED = 1e-6
# Each begins anew from the true residual.
_MAX_RESTARTS = 6
_MAX_KRYLOV = 60

LinearMap = Callable[[Array], Array]


def implicit_step(
    structure: Decomposition,
    mobility: Callable[..., Any] | None,
    state: GridDensity,
    tau: Scalar,
    tolerance: float,
    upwind: Flag,
    weights: tuple[Array, ...],
    guess: Array,
) -> Step:
    """[`implicit_euler`][thalweg.schemes._implicit_euler.implicit_euler], differentiable in both modes; where it did
    not converge the density is the one before.
    """

    def newton(start: Array) -> Step:
        return implicit_euler(structure, mobility, state, tau, tolerance, upwind, weights, start)

    def fluxes(values: Array) -> tuple[Array, ...]:
        here = eqx.tree_at(lambda s: s.values, state, values)
        moved, _ = fluxes_and_rates(structure, mobility, here, least_density(state.values), upwind)
        return tuple(w * flux for w, flux in zip(weights, moved, strict=True))

    def residual(values: Array) -> Array:
        return values - state.values + tau * divergence(fluxes(values), state.grid)

    step = detached(newton, guess)
    # A failed step is discarded; its derivative must be finite for its zero cotangent to stay zero.
    usable = step.converged & jnp.all(jnp.isfinite(step.values))
    found = jax.lax.stop_gradient(jnp.where(usable, step.values, state.values))

    def tangent_solve(product: LinearMap, right: Array) -> Array:
        none = jnp.zeros_like(tau)
        precondition = linearised(structure, mobility, state, found, tau, none, upwind, weights).preconditioner()

        def solve(product: LinearMap, right: Array) -> Array:
            return solve_to_rounding(product, precondition, right)

        def transpose_solve(transposed: LinearMap, right: Array) -> Array:
            _, pull = jax.vjp(precondition, jnp.zeros_like(right))
            return solve_to_rounding(transposed, lambda vector: pull(vector)[0], right)

        return jax.lax.custom_linear_solve(product, right, solve, transpose_solve)

    values = jax.lax.custom_root(residual, found, lambda _, start: start, tangent_solve)
    return step._replace(values=values, converged=usable)


def solve_to_rounding(product: LinearMap, precondition: LinearMap, right: Array) -> Array:
    """Solve by BiCGStab, to a relative residual of 1e-12 or as far as it goes; NaN where that is above 1e-6."""
    size = _norm(right)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        solution, left, count = carry
        accuracy = jnp.clip(_GOAL * size / _norm(left), _GOAL, 0.5)
        change, _ = bicgstab(product, precondition, left, accuracy, _MAX_KRYLOV)
        better = solution + change
        remaining = right - product(better)
        improved = _norm(remaining) < _norm(left)
        # What does not improve would not do so the next time.
        count = jnp.where(improved, count + 1, _MAX_RESTARTS)
        return jnp.where(improved, better, solution), jnp.where(improved, remaining, left), count

    begin = (jnp.zeros_like(right), right, jnp.zeros((), jnp.int32))
    unfinished = lambda c: (_norm(c[1]) > _GOAL * size) & (c[2] < _MAX_RESTARTS)  # noqa: E731
    solution, left, _ = jax.lax.while_loop(unfinished, body, begin)
    return jnp.where(_norm(left) <= _SOLVED * size, solution, jnp.nan)


def _norm(vector: Array) -> Scalar:
    return jnp.sqrt(jnp.sum(vector**2))
