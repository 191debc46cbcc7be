"""The structure of an energy, for schemes that can use more than its gradient.

An unknown energy is all remainder: schemes still work on it, only without the shortcut. A new energy with structure
registers itself on `decompose`; nothing else changes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._types import Array, State
from thalweg.energies._base import AbstractEnergy, Sum, Zero
from thalweg.energies._congestion import Congestion
from thalweg.energies._discrepancy import MaximumMeanDiscrepancy
from thalweg.energies._divergence import FDivergence
from thalweg.energies._interaction import InteractionEnergy
from thalweg.energies._joint import joint
from thalweg.energies._local import Entropy, InternalEnergy, PorousMedium, PotentialEnergy
from thalweg.energies._proximable import AbstractProximable
from thalweg.kernels import even_part


class Term(NamedTuple):
    """A scaled part of an energy: its factor, the energy without the factor, and what the part is made of (V, e, W
    or F).
    """

    scale: Any
    energy: AbstractEnergy
    function: Callable[..., Any]


class Decomposition(eqx.Module):
    r"""$F = \sum c\int V\,dq + T\int q\log q + \sum c\int e(q, x)\,dx + \sum \tfrac c2\iint W\,dq\,dq +
    \text{remainder}$.

    `temperature` is $T$ (`None` where there is no entropy); `local` integrands take a density value and a point;
    `interaction` kernels are even; `proximable` holds the terms with a known proximal map, such as constraints of
    vectors; `ceiling` is the least density that a [`thalweg.Congestion`][] allows (`None` where there is none).
    """

    potential: tuple[Term, ...] = ()
    temperature: Any = None
    local: tuple[Term, ...] = ()
    interaction: tuple[Term, ...] = ()
    proximable: tuple[Term, ...] = ()
    remainder: tuple[Term, ...] = ()
    ceiling: Any = None

    @property
    def is_linear(self) -> bool:
        """Whether the energy is a potential energy plus an entropy, so that its Wasserstein flow is a linear
        equation.
        """
        terms = self.local or self.interaction or self.proximable or self.remainder
        return not terms and self.ceiling is None

    @property
    def needs_positive_density(self) -> bool:
        """Whether the energy has a logarithmic or divergence part, whose flow keeps the density positive everywhere."""
        return self.temperature is not None or any(isinstance(term.energy, FDivergence) for term in self.local)

    def without_entropy(self) -> AbstractEnergy:
        """The energy less its entropy: what remains when noise plays the entropy."""
        rest = _sum(self.potential + self.local + self.interaction + self.proximable + self.remainder)
        return rest if self.ceiling is None else rest + Congestion(self.ceiling)

    def smooth(self) -> AbstractEnergy:
        """The energy less its proximable terms: the part that is differentiated. (Vectors have no entropy and no
        ceiling.)
        """
        return _sum(self.potential + self.local + self.interaction + self.remainder)

    def joint_proximable(self, state: State) -> AbstractProximable:
        """The proximable terms as one, for states like this one; without such terms, bounds at infinity."""
        return joint(self.proximable, state)

    def potential_value(self, point: Array) -> Array:
        r"""$\sum c\,V(x)$ at one point, shape `()`."""
        values = [term.scale * term.function(point) for term in self.potential]
        return jnp.asarray(sum(values[1:], start=values[0])) if values else jnp.zeros((), point.dtype)

    def local_value(self, density: Array, point: Array) -> Array:
        r"""$\sum c\,e(q, x)$ at one point, shape `()`."""
        values = [term.scale * term.function(density, point) for term in self.local]
        return jnp.asarray(sum(values[1:], start=values[0])) if values else jnp.zeros((), density.dtype)


def _sum(terms: tuple[Term, ...]) -> AbstractEnergy:
    return Sum(tuple(term.energy for term in terms), tuple(term.scale for term in terms)) if terms else Zero()


@functools.singledispatch
def decompose(energy: AbstractEnergy) -> Decomposition:
    """The structure of an energy; an energy that registers nothing is all remainder."""
    return Decomposition(remainder=(Term(1.0, energy, energy),))


@decompose.register
def _(energy: PotentialEnergy) -> Decomposition:
    return Decomposition(potential=(Term(1.0, energy, energy.potential),))


@decompose.register
def _(energy: Entropy) -> Decomposition:
    return Decomposition(temperature=1.0)


@decompose.register(InternalEnergy)
@decompose.register(PorousMedium)
def _(energy: InternalEnergy | PorousMedium) -> Decomposition:
    return Decomposition(local=(Term(1.0, energy, lambda density, point: energy.integrand(density)),))


@decompose.register
def _(energy: InteractionEnergy) -> Decomposition:
    return Decomposition(interaction=(Term(1.0, energy, even_part(energy.interaction_kernel)),))


@decompose.register
def _(energy: MaximumMeanDiscrepancy) -> Decomposition:
    # Less a constant, the energy of the target by itself.
    potential = energy.potential()
    if potential is None:
        return Decomposition(remainder=(Term(1.0, energy, energy),))
    pairs = InteractionEnergy(energy.kernel)
    return Decomposition(
        potential=(Term(1.0, PotentialEnergy(potential), potential),), interaction=(Term(1.0, pairs, energy.kernel),)
    )


@decompose.register
def _(energy: Congestion) -> Decomposition:
    return Decomposition(ceiling=energy.ceiling)


@decompose.register
def _(energy: FDivergence) -> Decomposition:
    if energy.is_reverse_kl:
        potential = PotentialEnergy(energy.target.potential)
        return Decomposition(potential=(Term(1.0, potential, energy.target.potential),), temperature=1.0)
    return Decomposition(local=(Term(1.0, energy, energy.integrand),))


@decompose.register
def _(energy: AbstractProximable) -> Decomposition:
    return Decomposition(proximable=(Term(1.0, energy, energy.prox),))


@decompose.register
def _(energy: Zero) -> Decomposition:
    return Decomposition()


@decompose.register
def _(energy: Sum) -> Decomposition:
    fields: dict[str, tuple[Term, ...]] = {}
    temperature = ceiling = None
    for scale, part in zip(energy.scales, energy.energies, strict=True):
        structure = decompose(part)
        if structure.ceiling is not None:
            _check_factor(scale)
            ceiling = structure.ceiling if ceiling is None else _smaller(ceiling, structure.ceiling)
        for name in ("potential", "local", "interaction", "proximable", "remainder"):
            scaled = tuple(Term(scale * c, f, fn) for c, f, fn in getattr(structure, name))
            fields[name] = fields.get(name, ()) + scaled
        if structure.temperature is not None:
            added = scale * structure.temperature
            temperature = added if temperature is None else temperature + added
    return Decomposition(temperature=temperature, ceiling=ceiling, **fields)


def _check_factor(scale: Any) -> None:
    if not _tree.is_traced(scale) and not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"`Congestion` is a constraint and needs a positive factor; it has {float(scale)}.")


def _smaller(one: Any, other: Any) -> Any:
    known = not (_tree.is_traced(one) or _tree.is_traced(other))
    return min(float(one), float(other)) if known else jnp.minimum(one, other)
