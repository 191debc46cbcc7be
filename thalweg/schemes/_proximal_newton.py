r"""Proximal Newton steps: f to second order, constraints and penalties whole.

The sentence with f replaced by its quadratic model and g kept as it is: the linearly implicit step for functions with
corners and walls. f is evaluated at points that satisfy the constraints only.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from thalweg._result import RESULTS
from thalweg._types import Array, Count, Flag, PRNGKey, Scalar, State
from thalweg.energies import AbstractEnergy, AbstractProximable
from thalweg.geometries import AbstractGeometry
from thalweg.schemes._base import AbstractScheme, StepInfo
from thalweg.schemes._forward_backward import check_composite, residual_of, split
from thalweg.schemes.proximal_solvers._composite import (
    CompositeModel,
    ModelSolution,
    largest_curvature,
    minimise_composite_model,
)
from thalweg.states import moving

# Beyond this many unknowns the Hessian is used through its products only.
_LARGEST_DENSE = 200
_MAX_TRIALS = 40
_INNER_STEPS = 60


class Memory(eqx.Module):
    """What the scheme remembers: the damping λ, the learnt diagonal, the largest residual and the largest norm of the
    state met, in the learnt metric.
    """

    damping: Scalar
    diagonal: Array
    largest_residual: Scalar
    largest_norm: Scalar


class ProximalNewton(AbstractScheme):
    r"""$x^+ = \operatorname{argmin}_y \tfrac{\lambda}{2}\|s\|_D^2 + \langle\nabla f(x), s\rangle + \tfrac12\langle s,
    \nabla^2 f(x)\,s\rangle + g(y)$ with $s = y - x$: Newton's method for functions with constraints and penalties.

    F is a function f plus proximable energies g (`f + tw.Box(0, 1)`, `f + tw.L1(0.1)`); f need not be convex. D is a
    diagonal learnt on the way (the curvatures along the coordinates), so that badly scaled problems need no tuning;
    $\lambda = 1/\alpha$ is adapted by the ratio of actual to predicted decrease, so that F never rises, and goes to
    zero where the model is right: the convergence is then superlinear. Every state satisfies the constraints exactly,
    as the output of a proximal map, and f is not asked elsewhere.

    Each step records `residual`, $\|x - \operatorname{prox}_g(x - \nabla f(x))\|$ at its end, and `relative_residual`,
    the same in the learnt metric, for `stop=tw.ResidualBelow(tolerance)`. It advances arc length, not time.

    **Arguments:** `dense`: whether the Hessian is formed (`None`: up to 200 unknowns) or used through its products.

    **Source:** Lee, Sun, Saunders, *Proximal Newton-type methods for minimizing composite functions* (SIAM J. Optim.
    2014); for the inner solver see `docs/constraints.md`.
    """

    dense: bool | None = eqx.field(static=True, default=None)

    takes_proximable = True
    advances_time = False
    distance_label = "‖x⁺ − x‖²"

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        flat, _ = ravel_pytree(moving(state))
        zero = jnp.zeros((), flat.dtype)
        return Memory(zero, jnp.zeros_like(flat), zero, zero)

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Memory, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        smooth, kinks = split(energy, state)
        flat, unravel = ravel_pytree(moving(state))
        eps = jnp.finfo(flat.dtype).eps

        def function(x: Array) -> Scalar:
            return smooth(eqx.combine(unravel(x), state)).astype(flat.dtype)

        value, gradient = jax.value_and_grad(function)(flat)
        matrix, product, diagonal = self._curvature(function, kinks, flat, memory)
        root = jnp.sqrt(diagonal)
        model = _scaled_model(kinks, unravel, flat, gradient, root, matrix, product)
        largest = largest_curvature(model.product, flat)
        kinks_before = model.kinks
        whole = value + kinks_before
        start_residual = _scaled_residual(model, model.point, gradient / root)
        most = jnp.maximum(memory.largest_residual, start_residual)
        # Towards the end the model is solved ever more accurately, for the superlinear rate.
        share = 1e-2 * start_residual / jnp.where(most > 0, most, 1)
        noise = 4 * eps * (jnp.linalg.norm(model.point) * largest + jnp.linalg.norm(model.slope))
        tolerance = jnp.maximum(share * start_residual, noise)

        def attempt(damping: Scalar) -> _Trial:
            found = minimise_composite_model(model, damping, largest, tolerance, _INNER_STEPS)
            # The proximal map once more in the user's coordinates: not a rounding outside the bounds.
            there = _proximal_point(kinks, unravel, root, found.forward, found.step)
            displacement = found.point - model.point
            lifted = kinks_before - found.kinks
            promised = lifted - model.change(displacement, model.product(displacement))
            after, slope = jax.value_and_grad(function)(there)
            gained = value - after + lifted
            # Where the decrease is lost in the rounding of F, the slopes at both ends still tell it.
            noisy = jnp.abs(promised) <= 1e4 * eps * (jnp.abs(value) + jnp.abs(kinks_before))
            by_slopes = lifted - 0.5 * (gradient + slope) @ (there - flat)
            rounding = 64 * eps * (jnp.abs(value) + jnp.abs(kinks_before))
            residual = _scaled_residual(model, found.point, slope / root)
            ratio = jnp.where(noisy, by_slopes, gained) / jnp.where(promised > 0, promised, 1)
            convex = found.curvature > 0
            # There a step must at least lower the residual; elsewhere, F.
            falls = jnp.where(
                noisy, (gained >= -rounding) & (residual < 0.9 * start_residual), gained >= 1e-4 * jnp.abs(promised)
            )
            good = convex & falls & (noisy | (promised > 0)) & jnp.isfinite(after) & jnp.all(jnp.isfinite(slope))
            return _Trial(damping, found, there, slope, residual, jnp.where(jnp.isfinite(ratio), ratio, -1), good)

        def again(carry: tuple[_Trial, Count]) -> tuple[_Trial, Count]:
            trial, count = carry
            # What is missing for a convex piece, and some more.
            raised = jnp.maximum(4 * trial.damping, 1e-4) - 1.5 * jnp.minimum(trial.found.curvature, 0)
            return attempt(jnp.where(count == 0, memory.damping, raised)), count + 1

        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(attempt, memory.damping))
        trial, count = jax.lax.while_loop(
            lambda carry: ~carry[0].good & (carry[1] < _MAX_TRIALS), again, (nothing, jnp.asarray(0, jnp.int32))
        )
        rest = start_residual == 0
        moved_flat = jnp.where(trial.good & ~rest, trial.point, flat)
        moved = unravel(moved_flat)
        slope = jnp.where(trial.good & ~rest, trial.slope, gradient)
        trust = [trial.ratio > 0.9, trial.ratio > 0.5, trial.ratio < 0.2]
        damping = trial.damping * jnp.select(trust, [jnp.asarray(factor, flat.dtype) for factor in (0.1, 0.4, 4.0)], 1)
        damping = jnp.where(damping < 1e-9, 0, damping).astype(flat.dtype)
        result = RESULTS.where(trial.good | rest, RESULTS.successful, RESULTS.step_size_underflow)
        result = RESULTS.where(jnp.isfinite(whole), result, RESULTS.non_finite)
        squared = jnp.sum((moved_flat - flat) ** 2)
        stats = {
            "residual": residual_of(kinks, moved, unravel(slope)).astype(flat.dtype),
            "trials": count,
            "inner_steps": trial.found.num_steps,
            "damping": trial.damping,
        }
        reach = jnp.maximum(jnp.linalg.norm(model.point), jnp.linalg.norm(moved_flat * root))
        reach = jnp.maximum(reach, memory.largest_norm)
        scaled = jnp.where(trial.good & ~rest, trial.residual, start_residual)
        stats["relative_residual"] = scaled / jnp.where(reach > 0, reach, 1)
        length = jnp.sqrt(squared)
        dissipated = whole - function(moved_flat) - kinks(moved).astype(flat.dtype)
        info = StepInfo(length, squared, dissipated, result, stats)
        return eqx.combine(moved, state), Memory(damping, diagonal, most, reach), info

    def _curvature(
        self, function: Any, kinks: AbstractProximable, flat: Array, memory: Memory
    ) -> tuple[Array | None, Any, Array]:
        slope = jax.grad(function)
        if not self._is_dense(flat.size):
            _, product = jax.linearize(slope, flat)
            largest = largest_curvature(product, flat)
            return None, product, jnp.full_like(flat, jnp.where(largest > 0, largest, 1))
        matrix = jax.jacfwd(slope)(flat)
        matrix = 0.5 * (matrix + matrix.T)
        diagonal = jnp.maximum(jnp.abs(jnp.diagonal(matrix)), 0.1 * memory.diagonal)
        if not kinks.takes_metric:
            diagonal = jnp.full_like(diagonal, jnp.max(diagonal))
        most = jnp.max(diagonal)
        diagonal = jnp.maximum(diagonal, jnp.where(most > 0, 1e-14 * most, 1))
        return matrix, lambda vector: matrix @ vector, diagonal

    def _is_dense(self, size: int) -> bool:
        return size <= _LARGEST_DENSE if self.dense is None else self.dense

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        check_composite(self, energy, geometry, state)

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "ProximalNewton":
        size = ravel_pytree(moving(state))[0].size
        return ProximalNewton(self._is_dense(size))

    def limit(self, remaining: Scalar) -> "ProximalNewton":
        return self

    def describe(self) -> dict[str, str]:
        how = "dense: the Hessian is formed" if self.dense else "matrix-free: Hessian-vector products"
        return {"curvature": how, "parameter": "arc length: `times` counts the length of the steps"}


class _Trial(eqx.Module):
    damping: Scalar
    found: ModelSolution
    point: Array
    slope: Array
    residual: Scalar
    ratio: Scalar
    good: Flag


def _scaled_model(
    kinks: AbstractProximable, unravel: Any, flat: Array, gradient: Array, root: Array, matrix: Any, product: Any
) -> CompositeModel:
    """The model in coordinates $\\sqrt d\\,x$, in which the learnt metric is the identity."""

    def prox(v: Array, step: Scalar) -> tuple[Array, Scalar]:
        point = _proximal_point(kinks, unravel, root, v, step)
        return point * root, kinks(unravel(point)).astype(v.dtype)

    return CompositeModel(
        flat * root,
        gradient / root,
        lambda v: product(v / root) / root,
        None if matrix is None else matrix / root[:, None] / root[None],
        prox,
        kinks(unravel(flat)).astype(flat.dtype),
    )


def _proximal_point(kinks: AbstractProximable, unravel: Any, root: Array, v: Array, step: Scalar) -> Array:
    """The proximal map of scaled coordinates, in the coordinates of the state."""
    point = unravel(v / root)
    if kinks.takes_metric:
        return ravel_pytree(kinks.prox(point, step, unravel(root**2)))[0]
    return ravel_pytree(kinks.prox(point, step / root[0] ** 2))[0]


def _scaled_residual(model: CompositeModel, point: Array, slope: Array) -> Scalar:
    one = jnp.ones((), point.dtype)
    return jnp.linalg.norm(point - model.prox(point - slope, one)[0])
