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
from thalweg._types import Array, Count, PRNGKey, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, AbstractMetric
from thalweg.schemes._base import AbstractScheme, StepInfo, check_positive, limited_step_size
from thalweg.schemes._curvature import AbstractCurvature, Scale, SecondOrder
from thalweg.schemes._trials import Local, first_good
from thalweg.schemes._trust_region import Spectrum
from thalweg.states import moving

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
    steps the energy has not visibly fallen, the least that the model ever promised, and the last lowest curvature.
    """

    radius: Scalar
    diagonal: Array
    first_value: Scalar
    stalled: Count
    least_decrement: Scalar
    lowest: Scalar


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
        return Memory(*jax.device_put((unknown, nothing_learnt, unknown, np.zeros((), np.int32), unknown, unknown)))

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
        value = jnp.asarray(model.value, dtype)
        first_value = jnp.where(jnp.isfinite(memory.first_value), memory.first_value, value)
        least = jnp.zeros((), dtype) if self.step_size is None else 1 / jnp.asarray(self.step_size, dtype)
        descended = jnp.maximum(first_value - value, 0)
        length = scale.length(flat)
        local = Local(energy, value, model, geometry, metric, unravel, scale, least, descended, length)
        trial, count, spectrum, at_rest = first_good(local, memory.radius)
        eps = jnp.finfo(dtype).eps
        size = trial.ball.size
        radius = jnp.where(trial.ratio < 0.25, 0.25 * size, trial.radius)
        radius = jnp.where(trial.ratio > 0.75, jnp.maximum(radius, 2 * size), radius)
        decrement = _decrement(spectrum)
        reference = jnp.maximum(jnp.abs(value), eps * (first_value - value))
        relative = jnp.where(decrement > 0, decrement / reference, 0).astype(dtype)
        # Where no step helps and none was to be expected, to rounding, this is the end and not a failure.
        little = (relative <= 1e-6) | (decrement <= 64 * eps * (first_value - value))
        # Where F is small from the start on, the length of Newton's step tells it.
        newton = jnp.linalg.norm(spectrum.slopes / (jnp.maximum(spectrum.values, 0) + spectrum.floor))
        near = (spectrum.lowest >= 0) & (newton <= eps**0.5 * length)
        little = little | near
        at_rest = at_rest | (~trial.good & little)
        moved = _tree.where(at_rest, state, local.moved(trial.displacement))
        # Slopes go on telling where the values have stopped.
        nearer = decrement < 0.9 * memory.least_decrement
        # Towards F = 0 at a degenerate minimum it could go on falling, by ever less, for thousands of steps.
        visible = jnp.maximum(4 * eps * jnp.abs(value), eps**2 * (first_value - value))
        lowered = trial.good & ((value - trial.after > visible) | nearer)
        least_decrement = jnp.minimum(memory.least_decrement, decrement)
        stalled = jnp.where(lowered, 0, memory.stalled + jnp.where(at_rest, _STALLED, 1))

        # A step that is lost in the rounding of the state: there is nothing left to gain, whatever F says.
        lost = near & (size <= 4 * eps * length)
        result = RESULTS.where(trial.good | at_rest, RESULTS.successful, RESULTS.step_size_underflow)
        result = RESULTS.where(jnp.isfinite(value), result, RESULTS.non_finite)
        stats = {
            "trials": count,
            "lowest_curvature": spectrum.lowest,
            "largest_curvature": spectrum.largest,
            "ratio": trial.ratio,
            "relative_decrement": relative,
            "has_stalled": ((stalled >= _STALLED) & little) | lost,
            "curvature_change": _change(diagonal, memory.diagonal, spectrum.lowest, memory.lowest),
        }
        distance = jnp.where(at_rest, 0, size**2)
        alpha = 1 / jnp.where(trial.ball.multiplier > 0, trial.ball.multiplier, jnp.maximum(spectrum.floor, least))
        info = StepInfo(alpha, distance, distance / alpha, result, stats)
        return moved, Memory(radius, diagonal, first_value, stalled, least_decrement, spectrum.lowest), info

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
        chosen = {"solver": type(self.solver).__name__, "curvature": type(self.curvature).__name__}
        if self.step_size is None:
            chosen["times"] = "sums of step sizes that only trust limits: not the time of a flow"
        return chosen


def _size(state: State) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(moving(state)))


def _change(diagonal: Array, diagonal_before: Array, lowest: Scalar, lowest_before: Scalar) -> Scalar:
    """The largest relative change of the curvature since the last step, along any coordinate and of the lowest;
    infinite where it was not known or not positive.
    """
    before = jnp.append(diagonal_before, jnp.where(jnp.isfinite(lowest_before), lowest_before, 0))
    changes = jnp.abs(jnp.append(diagonal, lowest) - before) / jnp.where(before > 0, before, 1)
    return jnp.max(jnp.where(before > 0, changes, jnp.inf))


def _decrement(spectrum: Spectrum) -> Scalar:
    """What the model without a limit still promises; infinite where it has no minimum."""
    floor = spectrum.floor
    promised = 0.5 * jnp.sum(spectrum.slopes**2 / (jnp.maximum(spectrum.values, 0) + floor))
    return jnp.where(spectrum.lowest < -1e3 * floor, jnp.inf, promised)
