"""Trials of a step with a quadratic model: shorter and shorter, until the energy agrees with the model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._result import RESULTS
from thalweg._types import Array, Count, Flag, Scalar, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, AbstractMetric, admissibility_in
from thalweg.schemes._curvature import DenseModel, FactoredModel, Scale, over_chart
from thalweg.schemes._trust_region import BallStep, Spectrum, minimise_in_ball

_MAX_TRIALS = 60


class Local(NamedTuple):
    """What the trials of one step share: the energy with its value here and its model, the metric with flat coordinates
    around the state, the scale in which a step is measured, the least multiplier, what F has fallen by so far, and the
    length of the state in that scale.
    """

    energy: AbstractEnergy
    value: Scalar
    model: Any
    geometry: AbstractGeometry
    metric: AbstractMetric
    unravel: Callable[[Array], State]
    scale: Scale
    least: Scalar
    descended: Scalar
    size: Scalar

    def moved(self, displacement: Array) -> State:
        """The state at a displacement."""
        assert self.metric.chart is not None
        return self.metric.chart(self.unravel(displacement))

    def spectrum(self) -> Spectrum:
        """The whole of the model's curvature."""
        return self.model.spectrum(self.scale, self.descended)


class Trial(eqx.Module):
    """One trial: the radius that was trusted, the model's step in the ball, the displacement, the ratio of actual to
    predicted decrease (−∞ where F has no value), F there, and whether it will do.
    """

    radius: Scalar
    ball: BallStep
    displacement: Array
    ratio: Scalar
    after: Scalar
    good: Flag


class _Search(NamedTuple):
    trial: Trial
    count: Count
    spectrum: Spectrum


def first_good(local: Local, radius: Scalar) -> tuple[Trial, Count, Spectrum, Flag]:
    """The first trial that will do, or the last, from the trusted radius down (infinite: as far as Newton's step); how
    many there were; the spectrum that was used; and whether the state is at rest, to rounding.

    Where Newton's step is all that is needed, and is as good as promised, the whole spectrum is never found.
    """
    shortcut = local.model.newton(local.scale, radius) if isinstance(local.model, DenseModel) else None
    spectrum = local.spectrum() if shortcut is None else jax.lax.cond(shortcut[1], lambda: shortcut[0], local.spectrum)
    first = jax.lax.cond(jnp.isfinite(radius), lambda: radius, lambda: _first_radius(spectrum))
    descends = spectrum.lowest < -100 * local.model.gradient.shape[0] * spectrum.floor
    # Where F falls along the lowest curvature, however small the slope, a step must be long enough to be seen.
    first = jnp.where(descends, jnp.maximum(first, jnp.finfo(first.dtype).eps ** 0.5 * local.size), first)
    at_rest = jnp.all(spectrum.slopes == 0) & ~descends

    def attempt(search: _Search) -> _Search:
        earlier, count, spectrum = search
        if shortcut is not None:
            # Newton's step was refused: for shorter ones the whole model is needed.
            spectrum = jax.lax.cond((count == 1) & shortcut[1], local.spectrum, lambda: spectrum)
        cut = jnp.where(jnp.isfinite(earlier.ratio), 0.25, 0.1) * earlier.ball.size
        return _Search(trial(local, spectrum, jnp.where(count == 0, first, cut)), count + 1, spectrum)

    def unfinished(search: _Search) -> Flag:
        return ~search.trial.good & (search.count < _MAX_TRIALS) & ((search.count == 0) | ~at_rest)

    shapes = jax.eval_shape(lambda: trial(local, spectrum, first))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    found = jax.lax.while_loop(unfinished, attempt, _Search(nothing, jnp.asarray(0, jnp.int32), spectrum))
    return found.trial, found.count, found.spectrum, at_rest


def trial(local: Local, spectrum: Spectrum, radius: Scalar) -> Trial:
    """The model's step in the ball, and what the energy says of it."""
    value, eps = local.value, jnp.finfo(local.value.dtype).eps
    ball = minimise_in_ball(spectrum, radius, local.least)
    along_model = local.scale.divide_transposed(spectrum.basis @ ball.coefficients)
    correction, straight = _correction(local, spectrum, ball, along_model)
    displacement = along_model + correction
    moved = local.moved(displacement)
    after = jnp.asarray(local.energy(moved), value.dtype)
    ratio = (value - after) / ball.decrease
    # Where the decrease is lost in the rounding of F, the slopes at both ends still tell it. That rounding is of the
    # terms of F, which may be larger than F: where the slopes agree with the model, what F seems to rise by is forgiven
    # up to a part in 10⁹ or so.
    noisy = ball.decrease <= eps**0.6 * jnp.abs(value)
    by_slopes = _ratio_by_slopes(local, displacement, ball, noisy)
    agree = noisy & (jnp.abs(by_slopes - 1) < 0.5)
    rounding = jnp.where(agree, 0.1 * eps**0.6, 64 * eps) * jnp.abs(value)
    ratio = jnp.where(noisy & (after <= value + rounding), by_slopes, ratio)
    fine = jnp.isfinite(after) & (admissibility_in(local.geometry, moved) == RESULTS.successful)
    good = fine & straight & (ratio > 1e-4) & (after <= value + rounding)
    ratio = jnp.where(straight, ratio, jnp.minimum(ratio, 0))
    return Trial(radius, ball, displacement, jnp.where(fine, ratio, -jnp.inf), after, good)


def _ratio_by_slopes(local: Local, displacement: Array, ball: BallStep, needed: Flag) -> Scalar:
    along, _ = over_chart(local.energy, local.metric)
    after = jax.lax.cond(needed, lambda: jax.grad(along)(displacement), lambda: jnp.zeros_like(displacement))
    return -0.5 * (after + local.model.gradient) @ displacement / ball.decrease


def _correction(local: Local, spectrum: Spectrum, ball: BallStep, displacement: Array) -> tuple[Array, Flag]:
    """What the model's second derivative along the step adds to it, and whether that is little enough."""
    model, scale = local.model, local.scale
    if not isinstance(model, FactoredModel) or model.bend is None or model.largest_bend is None:
        return jnp.zeros_like(displacement), jnp.asarray(True)
    turned = spectrum.basis.T @ scale.divide(model.bend(displacement))
    added = -0.5 * turned / (spectrum.values + ball.multiplier)
    straight = 2 * jnp.linalg.norm(added) <= model.largest_bend * ball.size
    return scale.divide_transposed(spectrum.basis @ added), straight


def _first_radius(spectrum: Spectrum) -> Scalar:
    # As far as Newton's step would go if all curvatures were positive.
    least = jnp.sqrt(jnp.finfo(spectrum.values.dtype).eps) * spectrum.largest
    size = jnp.maximum(jnp.abs(spectrum.values), least)
    reach = jnp.linalg.norm(spectrum.slopes / jnp.where(size > 0, size, 1))
    return jnp.where(reach > 0, reach, 1)
