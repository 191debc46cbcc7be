"""What is minimised: a map from states to numbers that can be added and scaled."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from thalweg._types import PRNGKey, Scalar, ScalarLike, State


class AbstractEnergy(eqx.Module):
    """F, what decreases along the flow. Energies add, subtract and scale: `tw.PotentialEnergy(V) + 0.5 *
    tw.Entropy()`.
    """

    @abc.abstractmethod
    def __call__(self, state: State) -> Scalar:
        """The energy of a state, shape `()`."""

    def at(self, time: ScalarLike, key: PRNGKey | None) -> "AbstractEnergy":
        """The energy that one step sees: schedules read the time, mini-batches the key. By default the energy
        itself.
        """
        del time, key
        return self

    @property
    def needs_key(self) -> bool:
        """Whether `at` draws random numbers, so that a flow of this energy needs a `key`."""
        return False

    def __add__(self, other: "AbstractEnergy") -> "AbstractEnergy":
        return Sum((self, _checked(other)), (1.0, 1.0))

    def __radd__(self, other: Any) -> "AbstractEnergy":
        # A plain function on the left: `f + tw.L1(0.1)`.
        return Sum((_checked(other), self), (1.0, 1.0))

    def __sub__(self, other: "AbstractEnergy") -> "AbstractEnergy":
        return Sum((self, _checked(other)), (1.0, -1.0))

    def __mul__(self, scale: ScalarLike) -> "AbstractEnergy":
        return Sum((self,), (scale,))

    def __rmul__(self, scale: ScalarLike) -> "AbstractEnergy":
        return Sum((self,), (scale,))

    def __truediv__(self, divisor: ScalarLike) -> "AbstractEnergy":
        return Sum((self,), (1 / divisor,))

    def __neg__(self) -> "AbstractEnergy":
        return Sum((self,), (-1.0,))


class Sum(AbstractEnergy):
    r"""$\sum_k c_k F_k$, made by `+`, `-` and `*` of energies."""

    energies: tuple[AbstractEnergy, ...]
    scales: tuple[Any, ...]

    def __call__(self, state: State) -> Scalar:
        values = [_scaled(scale, energy(state)) for scale, energy in zip(self.scales, self.energies, strict=True)]
        return sum(values[1:], start=values[0])

    def at(self, time: ScalarLike, key: PRNGKey | None) -> "Sum":
        return Sum(tuple(energy.at(time, key) for energy in self.energies), self.scales)

    @property
    def needs_key(self) -> bool:
        return any(energy.needs_key for energy in self.energies)


class Function(AbstractEnergy):
    """A plain function of the state; `tw.flow` wraps functions of vectors in this by itself."""

    fn: Callable[..., Any]

    def __call__(self, state: State) -> Scalar:
        return jnp.asarray(self.fn(state))


class Zero(AbstractEnergy):
    """The energy that is zero everywhere: what is left when every term of a sum is played by something else."""

    def __call__(self, state: State) -> Scalar:
        del state
        return jnp.zeros(())


def as_energy(energy: Any) -> AbstractEnergy:
    """Wrap a plain function as an energy; an energy is returned as it is."""
    if isinstance(energy, AbstractEnergy):
        return energy
    if callable(energy):
        return Function(energy)
    raise TypeError(
        "`energy` must be a function of the state or a named energy such as `tw.KL(target)`; got "
        f"{type(energy).__name__}."
    )


def _checked(other: Any) -> AbstractEnergy:
    if isinstance(other, AbstractEnergy) or callable(other):
        return as_energy(other)
    raise TypeError(f"An energy can be added to another energy, not to {type(other).__name__}.")


def _scaled(scale: Any, value: Scalar) -> Scalar:
    return jnp.asarray(scale, value.dtype) * value
