"""Sums of constraints and penalties: which have one proximal map, and what to do with those that have none."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from thalweg import _compiled, _tree
from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, State
from thalweg.energies._coupled import GroupLasso, L2Ball, LengthAndSeparable
from thalweg.energies._hyperplane import Hyperplane, OnHyperplane, Simplex
from thalweg.energies._parameters import check_bounds, known
from thalweg.energies._proximable import (
    L1,
    AbstractProximable,
    AbstractSeparable,
    Box,
    NonNegative,
    SeparableSum,
)


def nearest_feasible(kinks: AbstractProximable, state: State) -> tuple[Array, State]:
    """The energy at a state, infinite where it does not satisfy the constraints, and a state that does."""
    traced = any(_tree.is_traced(leaf) for leaf in jax.tree.leaves((kinks, state)))
    return _nearest(kinks, state) if traced else _compiled.call(_nearest, kinks, state)


def _nearest(kinks: AbstractProximable, state: State) -> tuple[Array, State]:
    return kinks(state), kinks.prox(state, 1.0)


def joint(terms: Iterable[Any], state: State) -> AbstractProximable:
    """One proximable energy for the terms of a decomposition: none, one, several entry-wise ones, or several of these
    and one that couples the entries.

    **Raises:** `UnsupportedCombination` if there is no joint proximal map; `ValueError` if a factor is not positive or
    bounds have nothing in common.
    """
    energies = []
    for term in terms:
        if not _tree.is_traced(term.scale) and not (np.isfinite(term.scale) and term.scale > 0):
            raise ValueError(
                f"`{type(term.energy).__name__}` is convex and needs a positive factor to have a proximal map; it has "
                f"{float(term.scale)}."
            )
        energies.append(term.energy.scaled(term.scale))
    if not energies:
        return Box()
    if len(energies) == 1:
        return energies[0]
    separable = [energy for energy in energies if isinstance(energy, AbstractSeparable)]
    coupled = [energy for energy in energies if not isinstance(energy, AbstractSeparable)]
    if not coupled:
        return _added(separable, state)
    if len(coupled) == 1:
        match coupled[0]:
            case Simplex() as simplex:
                return simplex.on_hyperplane(_added([NonNegative(), *separable], state))
            case Hyperplane() as plane:
                return OnHyperplane(_added(separable, state), plane.offset, plane.normal)
            case L2Ball() | GroupLasso() as length if all(isinstance(e, L1 | NonNegative) for e in separable):
                return LengthAndSeparable(length, _added(separable, state))
    names = " + ".join(type(energy).__name__ for energy in energies)
    raise UnsupportedCombination(f"{names} has no joint proximal map in closed form.\n{_advice(coupled)}")


def _added(separable: list[AbstractSeparable], state: State) -> AbstractSeparable:
    if len(separable) == 1:
        return separable[0]
    both = SeparableSum(tuple(separable), _tree.floating(state))
    parts = both.parts()
    if known(parts.lower, parts.upper):
        check_bounds(parts.lower, parts.upper)
    return both


def _advice(coupled: list[AbstractProximable]) -> str:
    """What to do instead, and what there is."""
    if all(isinstance(energy, Hyperplane | Simplex) for energy in coupled):
        there = "One linear constraint is taken, with any entry-wise energies."
        instead = "Solve the others for some of the entries inside the function, so that it has fewer unknowns"
    elif len(coupled) == 1 and isinstance(coupled[0], L2Ball | GroupLasso):
        there = "With L2Ball and GroupLasso go L1 and NonNegative."
        instead = "Write the other bounds or penalties as a smooth term of the function (a logarithm, a square)"
    else:
        there = (
            "What adds: Box, NonNegative, L1, ElasticNet in any number; to these one Hyperplane or Simplex; to L1 and "
            "NonNegative one L2Ball or GroupLasso."
        )
        instead = "Keep one of the others, and write the rest as smooth terms of the function"
    return f"{there}\n{instead}."
