r"""Proximal Newton steps: f to second order, constraints and penalties whole.

The sentence with f replaced by its quadratic model and g kept as it is: the linearly implicit step for functions with
corners and walls. f is evaluated at points that satisfy the constraints only.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from thalweg._result import RESULTS
from thalweg._sums import folded
from thalweg._types import Array, Flag, PRNGKey, Scalar, State
from thalweg.energies import AbstractEnergy, AbstractProximable
from thalweg.geometries import AbstractGeometry
from thalweg.schemes._base import AbstractScheme, StepInfo
from thalweg.schemes._forward_backward import check_composite, split
from thalweg.schemes.proximal_solvers._composite import (
    CompositeModel,
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

        def slope_of(x: Array) -> tuple[Array, tuple[Scalar, Array]]:
            value, gradient = jax.value_and_grad(function)(x)
            return gradient, (value, gradient)

        penalty = _Penalty(kinks, unravel)
        curvature, value, gradient = self._curvature(slope_of, kinks, flat, memory)
        root = jnp.sqrt(curvature.diagonal)
        kinks_before = penalty.value(flat)
        model = _scaled_model(penalty, flat, gradient, root, curvature, kinks_before)
        whole = value + kinks_before
        missed, reach, steepness = folded(
            [(model.point - root * penalty.prox(flat - gradient / root**2, jnp.ones_like(value), root)) ** 2]
            + [model.point**2, model.slope**2]
        )
        start_residual = jnp.sqrt(missed)
        most = jnp.maximum(memory.largest_residual, start_residual)
        # Towards the end the model is solved ever more accurately, for the superlinear rate.
        share = 1e-2 * start_residual / jnp.where(most > 0, most, 1)
        noise = 4 * eps * (jnp.sqrt(reach) * model.largest + jnp.sqrt(steepness))
        tolerance = jnp.maximum(share * start_residual, noise)

        def attempt(damping: Scalar, count: Scalar) -> tuple[Array, Array, Array]:
            found = minimise_composite_model(model, damping, tolerance, _INNER_STEPS)
            there = found.there
            after, slope = jax.value_and_grad(function)(there)
            way, displacement = there - flat, found.point - model.point
            change, by_slopes, squared, reach, wrong = folded(
                [model.slope * displacement + 0.5 * displacement * model.product(displacement)]
                + [0.5 * (gradient + slope) * way, way**2, (there * root) ** 2]
                + [jnp.where(jnp.isfinite(slope), 0.0, 1.0).astype(flat.dtype)]
            )
            lifted = kinks_before - found.kinks
            promised, gained, by_slopes = lifted - change, value - after + lifted, lifted - by_slopes
            # Where the decrease is lost in the rounding of F, the slopes at both ends still tell it.
            size = jnp.abs(value) + jnp.abs(kinks_before)
            noisy = jnp.abs(promised) <= 1e4 * eps * size
            residual, plain_residual = penalty.residuals(there, slope, root)
            ratio = jnp.where(noisy, by_slopes, gained) / jnp.where(promised > 0, promised, 1)
            # There a step must at least lower the residual; elsewhere, F.
            falls = jnp.where(
                noisy,
                (gained >= -64 * eps * size) & (residual < 0.9 * start_residual),
                gained >= 1e-4 * jnp.abs(promised),
            )
            good = (found.curvature > 0) & falls & (noisy | (promised > 0)) & jnp.isfinite(after) & (wrong == 0)
            trial = _Trial(
                damping,
                after + found.kinks,
                residual,
                plain_residual,
                jnp.where(jnp.isfinite(ratio), ratio, -1),
                found.curvature,
                squared,
                reach,
                found.num_steps.astype(flat.dtype),
                good.astype(flat.dtype),
                count + 1,
            )
            return there, slope, jnp.stack(trial)

        def again(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            trial = _Trial(*carry[2])
            # What is missing for a convex piece, and some more.
            raised = jnp.maximum(4 * trial.damping, 1e-4) - 1.5 * jnp.minimum(trial.curvature, 0)
            return attempt(jnp.where(trial.count == 0, memory.damping, raised), trial.count)

        def unfinished(carry: tuple[Array, Array, Array]) -> Flag:
            trial = _Trial(*carry[2])
            return (trial.good == 0) & (trial.count < _MAX_TRIALS)

        nothing = jnp.zeros_like(flat), jnp.zeros_like(flat), jnp.zeros(len(_Trial._fields), flat.dtype)
        there, slope, numbers = jax.lax.while_loop(unfinished, again, nothing)
        trial = _Trial(*numbers)
        rest, good = start_residual == 0, trial.good > 0
        moves = good & ~rest
        moved = jnp.where(moves, there, flat)
        trust = [trial.ratio > 0.9, trial.ratio > 0.5, trial.ratio < 0.2]
        damping = trial.damping * jnp.select(trust, [jnp.asarray(factor, flat.dtype) for factor in (0.1, 0.4, 4.0)], 1)
        result = RESULTS.where(good | rest, RESULTS.successful, RESULTS.step_size_underflow)
        result = RESULTS.where(jnp.isfinite(whole), result, RESULTS.non_finite)
        squared = jnp.where(moves, trial.squared, 0)
        reach = jnp.maximum(jnp.sqrt(jnp.maximum(reach, jnp.where(moves, trial.reach, 0))), memory.largest_norm)
        stats = {
            "residual": jnp.where(moves, trial.plain_residual, start_residual),
            "trials": trial.count.astype(jnp.int32),
            "inner_steps": trial.inner_steps.astype(jnp.int32),
            "damping": trial.damping,
            "relative_residual": jnp.where(moves, trial.residual, start_residual) / jnp.where(reach > 0, reach, 1),
        }
        info = StepInfo(jnp.sqrt(squared), squared, jnp.where(moves, whole - trial.value, 0), result, stats)
        memory = Memory(jnp.where(damping < 1e-9, 0, damping), curvature.diagonal, most, reach)
        return eqx.combine(unravel(moved), state), memory, info

    def _curvature(
        self, slope_of: Any, kinks: AbstractProximable, flat: Array, memory: Memory
    ) -> tuple["_Curvature", Scalar, Array]:
        if not self._is_dense(flat.size):
            gradient, product, (value, _) = jax.linearize(slope_of, flat, has_aux=True)
            largest = largest_curvature(product, flat)
            size = jnp.where(largest > 0, largest, 1)
            return _Curvature(None, product, jnp.full_like(flat, size), largest / size), value, gradient
        matrix, (value, gradient) = jax.jacfwd(slope_of, has_aux=True)(flat)
        matrix = 0.5 * (matrix + matrix.T)
        own = jnp.sum(jnp.where(jnp.eye(flat.size, dtype=bool), matrix, 0), axis=1)
        diagonal = jnp.maximum(jnp.abs(own), 0.1 * memory.diagonal)
        most = jnp.max(diagonal)
        diagonal = jnp.maximum(diagonal, jnp.where(most > 0, 1e-14 * most, 1))
        if not kinks.takes_metric:
            diagonal = jnp.full_like(diagonal, jnp.where(most > 0, most, 1))
        return _Curvature(matrix, None, diagonal, None), value, gradient

    def _is_dense(self, size: int) -> bool:
        return size <= _LARGEST_DENSE if self.dense is None else self.dense

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        check_composite(self, energy, geometry, state)

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "ProximalNewton":
        return ProximalNewton(self._is_dense(sum(leaf.size for leaf in jax.tree.leaves(moving(state)))))

    def limit(self, remaining: Scalar) -> "ProximalNewton":
        return self

    def describe(self) -> dict[str, str]:
        how = "dense: the Hessian is formed" if self.dense else "matrix-free: Hessian-vector products"
        return {"curvature": how, "parameter": "arc length: `times` counts the length of the steps"}


class _Curvature(NamedTuple):
    """The Hessian as a matrix, or as products with the largest curvature in the metric; and the metric's diagonal."""

    matrix: Array | None
    product: Any
    diagonal: Array
    largest: Any


class _Trial(NamedTuple):
    """The numbers of one trial, kept in one array, for as many arrays would be as many things to compile."""

    damping: Any
    value: Any
    residual: Any
    plain_residual: Any
    ratio: Any
    curvature: Any
    squared: Any
    reach: Any
    inner_steps: Any
    good: Any
    count: Any


class _Penalty(NamedTuple):
    """g on the state as one vector, with metrics given by the square roots of their diagonals."""

    kinks: AbstractProximable
    unravel: Any

    def value(self, x: Array) -> Scalar:
        return self.kinks.inside(self.unravel(x)).astype(x.dtype)

    def prox(self, x: Array, step: Scalar, root: Array) -> Array:
        if self.kinks.takes_metric:
            return ravel_pytree(self.kinks.prox(self.unravel(x), step, self.unravel(root**2)))[0]
        return ravel_pytree(self.kinks.prox(self.unravel(x), step / root[0] ** 2))[0]

    def residuals(self, x: Array, slope: Array, root: Array) -> tuple[Scalar, Scalar]:
        """The length of the forward-backward step of size one in the metric, and in the plain one."""
        roots = jnp.stack([root, jnp.ones_like(root)])
        there = jax.vmap(lambda r: self.prox(x - slope / r**2, jnp.ones((), x.dtype), r))(roots)
        ways = roots * (x[None] - there)
        scaled, plain = folded([ways[0] ** 2, ways[1] ** 2])
        return jnp.sqrt(scaled), jnp.sqrt(plain)


def _scaled_model(
    penalty: _Penalty, flat: Array, gradient: Array, root: Array, curvature: _Curvature, kinks: Scalar
) -> CompositeModel:
    """The model in coordinates $\\sqrt d\\,x$, in which the learnt metric is the identity."""

    def prox(v: Array, step: Scalar) -> tuple[Array, tuple[Array, Scalar]]:
        # In the coordinates of the state, where it is not a rounding outside the bounds.
        point = penalty.prox(v / root, step, root)
        return point * root, (point, penalty.value(point))

    if curvature.matrix is None:
        product, largest = curvature.product, curvature.largest
        return CompositeModel(
            flat * root, gradient / root, lambda v: product(v / root) / root, None, prox, kinks, largest
        )
    matrix = curvature.matrix / root[:, None] / root[None]
    values = jnp.linalg.eigvalsh(matrix)
    largest = jnp.maximum(jnp.abs(values[0]), jnp.abs(values[-1]))
    return CompositeModel(flat * root, gradient / root, lambda v: matrix @ v, matrix, prox, kinks, largest)
