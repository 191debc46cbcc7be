"""What a point of the space is, and the three integrals by which an energy reads a density.

A state is any pytree of arrays (a vector), or one of the classes here. Two functions serve both: [`admissibility`][]
says whether a state still lies in its space, and [`quadrature_weights`][] gives the weights that turn a gradient
into a first variation.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._result import RESULTS
from thalweg._types import Array, PyTree, Scalar, State


class AbstractState(eqx.Module):
    """A point of a space that is not a plain vector space."""

    @abc.abstractmethod
    def moving(self) -> PyTree:
        """The part of the state that a flow moves: the state with every other leaf replaced by `None`."""

    @abc.abstractmethod
    def quadrature_weights(self) -> PyTree:
        """Weights with the structure of the moving part, broadcastable along the leading axes of each leaf."""

    @abc.abstractmethod
    def admissibility(self) -> Any:
        """`RESULTS.successful` if the state lies in its space, else the member of `RESULTS` that says how it left
        it.
        """


class AbstractDensity(AbstractState):
    """A probability measure, read by energies through its integrals only.

    An energy never looks inside a representation, so a new representation serves every energy at once.
    """

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """The dimension of the space on which the measure lives."""

    @abc.abstractmethod
    def expect(self, potential: Callable[..., Any]) -> Scalar:
        r"""$\int V(x)\,\mathrm dq(x)$ for a function of one point."""

    @abc.abstractmethod
    def expect_pair(self, kernel: Callable[..., Any]) -> Scalar:
        r"""$\iint W(x - y)\,\mathrm dq(x)\,\mathrm dq(y)$ for a function of one displacement."""

    @abc.abstractmethod
    def integrate(self, integrand: Callable[..., Any]) -> Scalar:
        r"""$\int e(q(x), x)\,\mathrm dx$ for a function of a density value and a point; needs the value of the
        density.
        """

    @abc.abstractmethod
    def negative_entropy(self) -> Scalar:
        r"""$\int q\log q\,\mathrm dx$; needs the value of the density."""

    @property
    @abc.abstractmethod
    def knows_density(self) -> bool:
        """Whether the state can evaluate its own density, so that entropies are values and not symbols."""


def no_density_error(state: Any, what: str) -> UnsupportedCombination:
    """The error of a representation that is asked for the value of a density that it does not know."""
    return UnsupportedCombination(
        f"{what} needs the value of the density, which `{type(state).__name__}` without a density model does "
        "not know.\n"
        "Give it one, `Particles(positions, density=tw.KernelDensity())`, use a `GridDensity` or a `Gaussian`,\n"
        "or play the entropy by noise: `scheme=tw.Langevin(step_size)`."
    )


def is_density(state: State) -> bool:
    """Whether a state is a probability measure (else it is a vector)."""
    return isinstance(state, AbstractDensity)


def admissibility(state: State) -> Any:
    """`RESULTS.successful`, or why the state has left its space; a plain vector must only be finite."""
    if isinstance(state, AbstractState):
        return state.admissibility()
    return RESULTS.where(_tree.all_finite(state), RESULTS.successful, RESULTS.non_finite)


def moving(state: State) -> PyTree:
    """The part of a state that a flow moves; tangents and regular cotangents have its tree structure."""
    return state.moving() if isinstance(state, AbstractState) else _tree.floating(state)


def quadrature_weights(state: State) -> PyTree:
    """The weights of the pairing: a cell weighs its volume, a particle its mass, an entry of a vector 1."""
    if isinstance(state, AbstractState):
        return state.quadrature_weights()
    return jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), _tree.floating(state))


def is_concrete(*arrays: Array | None) -> bool:
    """Whether values can be looked at now (not while JAX is tracing)."""
    return not any(_tree.is_traced(array) for array in arrays) and all(
        array is None or eqx.is_array(array) for array in arrays
    )
