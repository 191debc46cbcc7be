"""Steepest descent as a scheme takes it: the direction, and whether it is one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._first_variation import Cotangent, Velocity, energy_and_first_variation
from thalweg._result import RESULTS
from thalweg._shapes import shapes_of
from thalweg._types import Scalar, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, AbstractMetric


class Descent(NamedTuple):
    """A direction; `stats` holds the part of the gradient that it leaves, where that is not zero by construction;
    `result` says whether it is little enough.
    """

    velocity: Velocity
    stats: dict[str, Any]
    result: Any


def descend(metric: AbstractMetric, cotangent: Cotangent, value: Scalar) -> Descent:
    """Steepest descent at a state where the energy is `value`.

    Where the matrix of a metric is singular, steepest descent exists for gradients in its range only, and an iteration
    may end early. What is left is forgiven where it is a small part of the gradient, and where a step along it could
    not change the energy but in its rounding: near a minimum the gradient itself is rounding.
    """
    if metric.checked_descent is None:
        return Descent(metric.steepest_descent(cotangent), {}, RESULTS.successful)
    velocity, accuracy = metric.checked_descent(cotangent)
    unknowns = sum(leaf.size for leaf in jax.tree.leaves(_tree.floating(velocity.tangent)))
    lost_in_rounding = 100 * unknowns * jnp.finfo(accuracy.residual.dtype).eps * jnp.abs(value)
    left = accuracy.residual
    fine = (left <= accuracy.tolerance * accuracy.size) | (left**2 <= lost_in_rounding)
    result = RESULTS.where(fine, RESULTS.successful, RESULTS.unsolved_metric)
    return Descent(velocity, {"descent_residual": accuracy.relative}, result)


def check_descent(energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
    """Raise unless the energy has a first variation at the state, and that a steepest descent; found by shapes alone,
    which are remembered for the next scheme that asks, and for the run.
    """
    _, cotangent = shapes_of(energy_and_first_variation, energy, state)
    shapes_of(tangent_of, geometry, state, cotangent)


def tangent_of(geometry: AbstractGeometry, state: State, cotangent: Cotangent) -> Any:
    """The tangent of steepest descent."""
    return geometry.at(state).steepest_descent(cotangent).tangent
