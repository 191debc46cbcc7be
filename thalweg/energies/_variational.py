r"""Functionals of functions: the integral of an integrand of a point, a function there and its derivatives.

The integral is that of the smooth function between the nodes, by Gauss points inside the cells, so the integrand is
never asked at an end where it may be singular. Its first variation, by automatic differentiation of this sum, is the
left side of the Euler–Lagrange equation at the nodes.
"""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Scalar, ScalarLike, State
from thalweg.energies._base import AbstractEnergy
from thalweg.states import AbstractState, GridFunction


class IntegralFunctional(AbstractEnergy):
    r"""An integral functional of the calculus of variations.

    $$F(y) = \int L(x, y(x), y'(x))\,\mathrm dx \quad\text{or}\quad \int L(x, y, y', y'')\,\mathrm dx.$$

    Its first variation is $\partial_y L - \frac{\mathrm d}{\mathrm dx}\partial_{y'}L +
    \frac{\mathrm d^2}{\mathrm dx^2}\partial_{y''}L$ at the nodes, with the natural boundary terms at sides where the
    values are free.

    **Arguments:** `integrand`: L, a function of three or four arguments that returns a number: the point x, shape
    `(dim,)`; the value y, a number; the slope $y'$, a number in one dimension and the gradient, shape `(2,)`, in two;
    and $y''$, a number, or the Hessian, shape `(2, 2)`.

    **Call:** `state`: a [`thalweg.GridFunction`][]; returns the integral, shape `()`.

    **Raises:** `ValueError` if the integrand takes another number of arguments, or returns no number.

    **Source:** Gelfand, Fomin, *Calculus of Variations* (1963), sections 4 and 11; Su (2023), the section on
    functionals.
    """

    integrand: Callable[..., Any]

    def __check_init__(self) -> None:
        if not callable(self.integrand):
            raise ValueError(
                "`integrand` of `IntegralFunctional` must be a function of (x, y, slope) or (x, y, slope, second "
                f"derivative); got {type(self.integrand).__name__}."
            )
        _num_derivatives(self.integrand)

    def densities(self, state: GridFunction) -> tuple[Array, Array, Array]:
        """The quadrature points, their weights, and the integrand at them."""
        jet = state.jet(_num_derivatives(self.integrand))
        arguments = (jet.points, jet.value, jet.gradient, jet.hessian)[: _num_derivatives(self.integrand) + 2]
        values = jax.vmap(lambda *at: jnp.asarray(self.integrand(*at)))(*arguments)
        if values.size != jet.weights.size:
            raise ValueError(
                f"`integrand` must return a number at each point; got an array of shape {values.shape[1:]}.\n"
                "In two dimensions the slope is the gradient, shape (2,): |∇u|² is `jnp.sum(slope**2)`."
            )
        return jet.points, jet.weights, values.reshape(jet.weights.shape).astype(jet.weights.dtype)

    def __call__(self, state: State) -> Scalar:
        _require_function(self, state)
        _, weights, values = self.densities(state)
        return jnp.sum(weights * values)


class Action(AbstractEnergy):
    r"""The action of mechanics, $F(y) = \int \tfrac12 m\,y'(x)^2 - V(y(x))\,\mathrm dx$, where x is time.

    It is stationary where Newton's law $m y'' = -V'(y)$ holds. Between given ends that is a minimum as long as the
    interval ends before the first conjugate point, and a saddle beyond; [`thalweg.stationary_point`][] tells which.

    **Arguments:** `potential`: V, a function of the position y, a number; `mass`: m > 0.

    **Source:** Gelfand, Fomin, *Calculus of Variations* (1963), sections 26 and 36; Su (2023), the section on
    functionals.
    """

    potential: Callable[..., Any]
    mass: ScalarLike = 1.0

    def __call__(self, state: State) -> Scalar:
        _require_function(self, state)
        return self._functional()(state)

    def _functional(self) -> IntegralFunctional:
        def lagrangian(x: Array, y: Array, velocity: Array) -> Array:
            return 0.5 * jnp.asarray(self.mass, y.dtype) * velocity**2 - jnp.asarray(self.potential(y)).reshape(())

        return IntegralFunctional(lagrangian)


def _require_function(energy: AbstractEnergy, state: State) -> None:
    if not isinstance(state, GridFunction):
        given = type(state).__name__ if isinstance(state, AbstractState) else "a plain vector or pytree"
        raise UnsupportedCombination(
            f"`{type(energy).__name__}` is an integral of a function and its derivatives and needs a "
            f"`tw.GridFunction`; got {given}.\n"
            "Use `tw.Functional(fn)` for a functional of another state."
        )


def _num_derivatives(integrand: Callable[..., Any]) -> int:
    """How many derivatives an integrand takes: one, or two."""
    try:
        parameters = inspect.signature(integrand).parameters.values()
    except (TypeError, ValueError):
        return 1
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return 1
    if len(places) not in (3, 4):
        raise ValueError(
            "`integrand` of `IntegralFunctional` must take (x, y, slope) or (x, y, slope, second derivative); "
            f"it takes {len(places)} argument(s)."
        )
    return len(places) - 2


@eqx.filter_jit
def _densities(energy: IntegralFunctional, state: GridFunction) -> tuple[Array, Array, Array]:
    return energy.densities(state)


def check_integrands(energy: AbstractEnergy, state: GridFunction) -> None:
    """Raise `ValueError` if an integrand of an energy is not finite somewhere at a state."""
    kinds = (IntegralFunctional, Action)
    for part in jax.tree.leaves(energy, is_leaf=lambda leaf: isinstance(leaf, kinds)):
        if not isinstance(part, kinds):
            continue
        functional = part if isinstance(part, IntegralFunctional) else part._functional()
        points, _, values = _densities(functional, state)
        if _tree.is_traced(values):
            continue
        bad = ~np.isfinite(np.asarray(values))
        if np.any(bad):
            where = [round(float(c), 6) for c in np.asarray(points)[bad][0]]
            raise ValueError(
                f"The integrand must be finite along `initial_state`; it is {float(np.asarray(values)[bad][0])} at "
                f"{int(bad.sum())} of {bad.size} points, first at x = {where}.\n"
                "Start from a function on which it is finite (a brachistochrone must fall at once: y > 0)."
            )
