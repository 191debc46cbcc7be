"""What schemes with inertia share: a step size in units of time, and what must be so before a run."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._errors import UnsupportedCombination
from thalweg._first_variation import energy_and_first_variation
from thalweg._types import PyTree, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry
from thalweg.schemes._base import AbstractScheme, limited_step_size
from thalweg.schemes._descent import check_descent


class AbstractInertial(AbstractScheme):
    """A scheme of the second order in time: with steps of one size, and in certain metrics only."""

    step_size: eqx.AbstractVar[ScalarLike]

    @abc.abstractmethod
    def why_not(self, geometry: AbstractGeometry, state: State) -> str | None:
        """Why the equation makes no sense in this geometry at this state, and what to do instead; or `None`."""

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        reason = self.why_not(geometry, state)
        if reason is not None:
            raise UnsupportedCombination(reason)
        check_descent(energy, geometry, state)

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "AbstractInertial":
        return self

    def limit(self, remaining: Scalar) -> "AbstractInertial":
        step_size = jnp.asarray(self.step_size, remaining.dtype)
        return eqx.tree_at(lambda s: s.step_size, self, limited_step_size(step_size, remaining))


@eqx.filter_jit
def first_gradient(energy: AbstractEnergy, state: State) -> PyTree:
    """The regular part of the first variation where a motion begins."""
    return energy_and_first_variation(energy, state)[1].regular


def mean_of(one: PyTree, other: PyTree) -> PyTree:
    """The mean of two trees, leaf by leaf."""
    return jax.tree.map(lambda a, b: (a + b) / 2, one, other)
