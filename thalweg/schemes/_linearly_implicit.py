"""Linearly implicit steps: F to second order, and a step size that the model has earned."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._result import RESULTS
from thalweg._types import Array, Count, Flag, PRNGKey, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, AbstractMetric, admissibility_in
from thalweg.schemes._base import AbstractScheme, StepInfo, check_positive, limited_step_size
from thalweg.schemes._curvature import (
    AbstractCurvature,
    DenseModel,
    FactoredModel,
    Scale,
    SecondOrder,
    over_chart,
)
from thalweg.schemes._trust_region import BallStep, Spectrum, minimise_in_ball
from thalweg.states import moving

_MAX_TRIALS = 60
# After so many steps without a visible decrease the energy will not fall any more.
_STALLED = 8
# Beyond this many unknowns a decomposition of the Hessian costs more than many products with it.
_LARGEST_DENSE = 300


class LearntDiagonal(eqx.Module):
    r"""A diagonal Mahalanobis metric learnt on the way, in place of the geometry's: the sizes of the second
    derivatives along each coordinate, so that the units of the coordinates do not matter.

    **Arguments:** `memory`: the share of its size that an entry keeps from step to step, between 0 and 1; with 1 it
    never falls (Moré, 1978).
    """

    memory: float = eqx.field(static=True, default=1.0)


class DenseSpectrum(eqx.Module):
    """All eigenvalues of the curvature, by a dense decomposition: exact steps, for up to some hundreds of unknowns."""


class Krylov(eqx.Module):
    """The curvature in a Krylov space, by Hessian-vector products: for many unknowns.

    **Arguments:** `num_vectors`: the most dimensions of the space, each a vector kept in memory during a step.
    """

    num_vectors: int = eqx.field(static=True, default=100)

    def __check_init__(self) -> None:
        if self.num_vectors < 2:
            raise ValueError(f"`num_vectors` of `Krylov` must be at least 2; got {self.num_vectors}.")


class Memory(eqx.Module):
    """What the scheme remembers: the radius of trust, the learnt diagonal, the energy where it began, for how many
    steps the energy has not visibly fallen, and the least that the model ever promised.
    """

    radius: Scalar
    diagonal: Array
    first_value: Scalar
    stalled: Count
    least_decrement: Scalar


class LinearlyImplicit(AbstractScheme):
    r"""$x^+ = x - (G/\alpha + H)^{-1}\nabla F$: the proximal step with F replaced by its quadratic model.

    Newton's method where $\alpha$ is large, the explicit step where it is small, Levenberg–Marquardt with
    `curvature=tw.GaussNewton()`. The step size is adapted by the ratio of actual to predicted decrease, through the
    radius within which the model is trusted; F never rises.

    **Arguments:** `step_size`: the largest $\alpha$, in units of time; `None` sets no limit but trust. `curvature`:
    `tw.SecondOrder()` or `tw.GaussNewton()`. `scale`: `None` measures steps in the geometry; `tw.LearntDiagonal()`
    in a diagonal metric learnt on the way. `solver`: `None` (chosen by the number of unknowns and named in
    `path.stats`), `tw.DenseSpectrum()` or `tw.Krylov()`.

    First order in time where `step_size` is what limits it; quadratic convergence at a minimum where nothing does.
    **Source:** Su (2023), the section on the penalised view; Conn, Gould, Toint, *Trust-Region Methods* (2000).
    """

    step_size: ScalarLike | None = None
    curvature: AbstractCurvature = SecondOrder()
    scale: LearntDiagonal | None = None
    solver: DenseSpectrum | Krylov | None = None

    distance_label = "‖x⁺ − x‖² in the metric of the step, as the step penalises it"

    def __check_init__(self) -> None:
        if self.step_size is not None:
            check_positive(self.step_size, "step_size", "LinearlyImplicit")

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        dtype = _tree.dtype_of(state)
        unknown, nothing_learnt = np.asarray(np.inf, dtype), np.zeros(_size(state), dtype)
        # All at once: each array that is made by itself costs the host as much as a step of a small problem.
        return Memory(*jax.device_put((unknown, nothing_learnt, unknown, np.zeros((), np.int32), unknown)))

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Memory, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        metric = geometry.at(state)
        flat, unravel = ravel_pytree(moving(state))
        dtype = flat.dtype
        if isinstance(self.solver, Krylov):
            model = self.curvature.products(energy, metric, self.solver.num_vectors)
        else:
            model = self.curvature.expand(energy, metric)
        scale, diagonal = self._scale(metric, model, memory)
        shortcut = model.newton(scale, memory.radius) if isinstance(model, DenseModel) else None
        descended = jnp.maximum(jnp.where(jnp.isfinite(memory.first_value), memory.first_value - model.value, 0), 0)
        whole = lambda: model.spectrum(scale, descended)  # noqa: E731
        spectrum = whole() if shortcut is None else jax.lax.cond(shortcut[1], lambda: shortcut[0], whole)
        least = jnp.zeros((), dtype) if self.step_size is None else 1 / jnp.asarray(self.step_size, dtype)
        value = jnp.asarray(model.value, dtype)
        eps = jnp.finfo(dtype).eps
        along, _ = over_chart(energy, metric)

        def candidate(radius: Scalar, spectrum: Spectrum) -> _Trial:
            ball = minimise_in_ball(spectrum, radius, least)
            along_model = scale.divide_transposed(spectrum.basis @ ball.coefficients)
            correction, straight = _correction(model, scale, spectrum, ball, along_model)
            displacement = along_model + correction
            moved = metric.chart(unravel(displacement))  # type: ignore[misc]
            after = jnp.asarray(energy(moved), dtype)
            ratio = (value - after) / ball.decrease
            # Where the decrease is lost in the rounding of F, the slopes at both ends still tell it. That rounding is
            # of the terms of F, which may be larger than F: where the slopes agree with the model, what F seems to
            # rise by is forgiven up to a part in 10⁹ or so.
            noisy = ball.decrease <= eps**0.6 * jnp.abs(value)
            slope_after = jax.lax.cond(
                noisy, lambda: jax.grad(along)(displacement), lambda: jnp.zeros_like(displacement)
            )
            by_slopes = -0.5 * (slope_after + model.gradient) @ displacement / ball.decrease
            agree = noisy & (jnp.abs(by_slopes - 1) < 0.5)
            rounding = jnp.where(agree, 0.1 * eps**0.6, 64 * eps) * jnp.abs(value)
            ratio = jnp.where(noisy & (after <= value + rounding), by_slopes, ratio)
            inside = admissibility_in(geometry, moved) == RESULTS.successful
            fine = jnp.isfinite(after) & inside
            good = fine & straight & (ratio > 1e-4) & (after <= value + rounding)
            ratio = jnp.where(straight, ratio, jnp.minimum(ratio, 0))
            return _Trial(radius, ball, displacement, jnp.where(fine, ratio, -jnp.inf), after, good)

        def attempt(carry: tuple[_Trial, Count, Spectrum]) -> tuple[_Trial, Count, Spectrum]:
            earlier, count, spectrum = carry
            if shortcut is not None:
                # Newton's step was refused: for shorter ones the whole model is needed.
                spectrum = jax.lax.cond((count == 1) & shortcut[1], whole, lambda: spectrum)
            cut = jnp.where(jnp.isfinite(earlier.ratio), 0.25, 0.1) * earlier.ball.size
            return candidate(jnp.where(count == 0, first, cut), spectrum), count + 1, spectrum

        first = jax.lax.cond(jnp.isfinite(memory.radius), lambda: memory.radius, lambda: _first_radius(spectrum))
        at_rest = jnp.all(spectrum.slopes == 0) & (spectrum.lowest >= -100 * flat.size * spectrum.floor)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(candidate, first, spectrum))
        trial, count, spectrum = jax.lax.while_loop(
            lambda carry: ~carry[0].good & (carry[1] < _MAX_TRIALS) & ((carry[1] == 0) | ~at_rest),
            attempt,
            (nothing, jnp.asarray(0, jnp.int32), spectrum),
        )
        size = trial.ball.size
        radius = jnp.where(trial.ratio < 0.25, 0.25 * size, trial.radius)
        radius = jnp.where(trial.ratio > 0.75, jnp.maximum(radius, 2 * size), radius)
        moved = metric.chart(unravel(trial.displacement))  # type: ignore[misc]
        first_value = jnp.where(jnp.isfinite(memory.first_value), memory.first_value, value)
        decrement = _decrement(spectrum)
        reference = jnp.maximum(jnp.abs(value), eps * (first_value - value))
        relative = jnp.where(decrement > 0, decrement / reference, 0).astype(dtype)
        # Where no step helps and none was to be expected, to rounding, this is the end and not a failure.
        little = (relative <= 1e-6) | (decrement <= 64 * eps * (first_value - value))
        at_rest = at_rest | (~trial.good & little)
        moved = _tree.where(at_rest, state, moved)
        # Slopes go on telling where the values have stopped.
        nearer = decrement < 0.9 * memory.least_decrement
        lowered = trial.good & ((value - trial.after > 4 * eps * jnp.abs(value)) | nearer)
        least_decrement = jnp.minimum(memory.least_decrement, decrement)
        stalled = jnp.where(lowered, 0, memory.stalled + jnp.where(at_rest, _STALLED, 1))

        result = RESULTS.where(trial.good | at_rest, RESULTS.successful, RESULTS.step_size_underflow)
        result = RESULTS.where(jnp.isfinite(value), result, RESULTS.non_finite)
        stats = {
            "trials": count,
            "lowest_curvature": spectrum.lowest,
            "largest_curvature": spectrum.largest,
            "ratio": trial.ratio,
            "relative_decrement": relative,
            "has_stalled": (stalled >= _STALLED) & little,
        }
        distance = jnp.where(at_rest, 0, size**2)
        alpha = 1 / jnp.where(trial.ball.multiplier > 0, trial.ball.multiplier, jnp.maximum(spectrum.floor, least))
        info = StepInfo(alpha, distance, distance / alpha, result, stats)
        return moved, Memory(radius, diagonal, first_value, stalled, least_decrement), info

    def _scale(self, metric: AbstractMetric, model: Any, memory: Memory) -> tuple[Scale, Array]:
        if self.scale is None:
            assert metric.matrix is not None
            return Scale(jnp.linalg.cholesky(metric.matrix())), memory.diagonal
        diagonal = jnp.maximum(model.diagonal(), self.scale.memory * memory.diagonal)
        largest = jnp.max(diagonal)
        known = jnp.where(diagonal > 0, diagonal, jnp.where(largest > 0, largest, 1))
        return Scale(jnp.sqrt(known)), diagonal

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        metric = geometry.at(state)
        self.curvature.check(energy, state)
        if metric.chart is None or (self.scale is None and metric.matrix is None):
            raise UnsupportedCombination(
                f"`LinearlyImplicit` needs an inner product; `{type(geometry).__name__}` here has none.\n"
                "Use `geometry=tw.Euclidean()` or `tw.Mahalanobis(matrix)`, or `scheme=tw.Explicit(step_size)`, "
                "which needs the norm only."
            )

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "LinearlyImplicit":
        if self.solver is not None:
            return self
        solver = DenseSpectrum() if _size(state) <= _LARGEST_DENSE else Krylov()
        return dataclasses.replace(self, solver=solver)

    def limit(self, remaining: Scalar) -> "LinearlyImplicit":
        step_size = jnp.asarray(jnp.inf if self.step_size is None else self.step_size, remaining.dtype)
        limited = limited_step_size(step_size, remaining)
        return eqx.tree_at(lambda s: s.step_size, self, limited, is_leaf=lambda leaf: leaf is None)

    def describe(self) -> dict[str, str]:
        return {"solver": type(self.solver).__name__, "curvature": type(self.curvature).__name__}


class _Trial(eqx.Module):
    radius: Scalar
    ball: BallStep
    displacement: Array
    ratio: Scalar
    after: Scalar
    good: Flag


def _correction(
    model: Any, scale: Scale, spectrum: Spectrum, ball: BallStep, displacement: Array
) -> tuple[Array, Flag]:
    """What the model's second derivative along the step adds to it, and whether that is little enough."""
    if not isinstance(model, FactoredModel) or model.bend is None:
        return jnp.zeros_like(displacement), jnp.asarray(True)
    turned = spectrum.basis.T @ scale.divide(model.bend(displacement))
    added = -0.5 * turned / (spectrum.values + ball.multiplier)
    straight = 2 * jnp.linalg.norm(added) <= model.largest_bend * jnp.linalg.norm(ball.coefficients)
    return scale.divide_transposed(spectrum.basis @ added), straight


def _size(state: State) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(moving(state)))


def _first_radius(spectrum: Spectrum) -> Scalar:
    # As far as Newton's step would go if all curvatures were positive.
    least = jnp.sqrt(jnp.finfo(spectrum.values.dtype).eps) * spectrum.largest
    size = jnp.maximum(jnp.abs(spectrum.values), least)
    reach = jnp.linalg.norm(spectrum.slopes / jnp.where(size > 0, size, 1))
    return jnp.where(reach > 0, reach, 1)


def _decrement(spectrum: Spectrum) -> Scalar:
    """What the model without a limit still promises; infinite where it has no minimum."""
    floor = spectrum.floor
    promised = 0.5 * jnp.sum(spectrum.slopes**2 / (jnp.maximum(spectrum.values, 0) + floor))
    return jnp.where(spectrum.lowest < -1e3 * floor, jnp.inf, promised)
