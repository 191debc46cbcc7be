"""The gradient-flow ODE of a state with few coordinates, by the solvers of diffrax."""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._first_variation import first_variation
from thalweg._result import RESULTS
from thalweg._types import Array, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, FunctionMetric, NormedMetric
from thalweg.schemes._exponential import ExponentialRosenbrock
from thalweg.states import Particles, moving

# Where stability limits it, Tsit5 takes about α·λ/3 steps; beyond 100 a stiff solver is cheaper.
_STABLE = 3.0
_STIFF = 100.0
# Above this many unknowns the dense matrices of a stiff solver cost more than they save, if an explicit one can do it.
_LARGEST_IMPLICIT = 500
# Above this many an eigendecomposition takes half a minute.
_LARGEST_DENSE = 2000


class ODESolver(eqx.Module):
    r"""$\dot x = $ steepest descent at $x$, by a solver of diffrax with adaptive steps.

    **Arguments:** `solver`: any diffrax ODE solver; `rtol`, `atol`: its tolerances; `max_steps`: of one interval;
    `first_step`: the longest that the first step may be (an explicit solver may overflow where it is far too long).
    """

    solver: diffrax.AbstractSolver
    rtol: float = eqx.field(static=True, default=1e-8)
    atol: float = eqx.field(static=True, default=1e-10)
    max_steps: int = eqx.field(static=True, default=16384)
    first_step: ScalarLike | None = None

    def first_substep(self, duration: Scalar) -> Scalar:
        """Where the adaptation begins."""
        if self.first_step is None:
            return duration / 8
        return jnp.minimum(duration / 8, jnp.asarray(self.first_step, duration.dtype))

    def advance(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, duration: Scalar, substep: Scalar
    ) -> tuple[State, Scalar, Scalar, Any, dict[str, Array]]:
        """The state after `duration`, the next substep, the energy dissipated, a result, and counts of substeps."""

        time_dtype = jnp.result_type(duration)
        # Leaves only: the loops of diffrax do not know every class of state.
        leaves, structure = jax.tree.flatten(moving(state))

        def field(t: Any, extended: Any, args: Any) -> Any:
            # The dissipated energy is one more unknown, so that the energy balance is as accurate as the solution.
            point = eqx.combine(jax.tree.unflatten(structure, extended[0]), state)
            metric = geometry.at(point)
            velocity = metric.steepest_descent(first_variation(energy, point))
            return jax.tree.leaves(velocity.tangent), metric.norm_squared(velocity).astype(time_dtype)

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            self.solver,
            t0=jnp.zeros((), time_dtype),
            t1=duration,
            dt0=jnp.minimum(substep, duration),
            y0=(leaves, jnp.zeros((), time_dtype)),
            saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol, norm=_norm_of_state),
            max_steps=self.max_steps,
            throw=False,
        )
        assert solution.ys is not None
        free, dissipated = jax.tree.map(lambda leaf: leaf[0], solution.ys)
        moved = eqx.combine(jax.tree.unflatten(structure, free), state)
        accepted = jnp.maximum(solution.stats["num_accepted_steps"], 1)
        # An interval is cut at its end; the mean step, a little enlarged, is where the next one begins.
        following = (1.25 * duration / accepted).astype(time_dtype)
        good = solution.result == diffrax.RESULTS.successful
        result = RESULTS.where(good, RESULTS.successful, RESULTS.inner_solver_failed)
        counts = {
            "substeps": jnp.asarray(solution.stats["num_steps"], jnp.int32),
            "rejected_substeps": jnp.asarray(solution.stats["num_rejected_steps"], jnp.int32),
        }
        return moved, following, dissipated, result, counts


def _norm_of_state(extended: Any) -> Array:
    # The dissipated energy rides along: its rate is the square of a fast transient's, and must not set the steps.
    return optx.rms_norm(extended[0])


def default_tolerances(state: State) -> tuple[float, float]:
    """Relative and absolute tolerance: near rounding for exact fields, looser where the field itself is an estimate."""
    if _tree.dtype_of(state).itemsize < 8:
        return 1e-5, 1e-6
    # A kernel estimate is off by N^{-1/2} and more: digits beyond that cost pairwise sums and buy nothing.
    return (1e-4, 1e-6) if isinstance(state, Particles) and state.knows_density else (1e-8, 1e-10)


def choose_solver(
    energy: AbstractEnergy, geometry: AbstractGeometry, state: State, duration: Any
) -> tuple[ODESolver | ExponentialRosenbrock, str]:
    """An explicit, an exponential or an implicit solver, by the largest rate of the flow at the start and by what the
    geometry and the energy offer, and the reason in words.
    """
    dtype = _tree.dtype_of(state)
    free, _ = ravel_pytree(moving(state))
    rtol, atol = default_tolerances(state)
    explicit = ODESolver(diffrax.Tsit5(), rtol, atol)
    large = free.size > _LARGEST_IMPLICIT
    if large and not isinstance(geometry.at(state), NormedMetric | FunctionMetric):
        # The rate would be known, but 24 products with the derivative of such a field may cost more than the flow.
        return explicit, f"Tsit5 (explicit): {free.size} unknowns are too many for an implicit solver's dense Jacobian"
    rate = _measured_rate(energy, geometry, state)
    if rate is None:
        return explicit, "Tsit5 (explicit): the velocity has no derivative, so stiffness was not measured"
    if _tree.is_traced(rate) or _tree.is_traced(duration):
        return explicit, "Tsit5 (explicit): chosen while tracing, where stiffness cannot be measured"
    rate = float(rate)
    if not math.isfinite(rate):
        return explicit, "Tsit5 (explicit): the velocity has no derivative at the start, so stiffness was not measured"
    stiffness = float(duration) * rate
    measured = f"fastest rate at the start {rate:.3g}, times step size {stiffness:.3g}"
    if stiffness < _STIFF:
        return explicit, f"Tsit5 (explicit): {measured} < {_STIFF:.0f}"
    steps = stiffness / _STABLE
    if large and (steps < explicit.max_steps or free.size > _LARGEST_DENSE):
        return ODESolver(diffrax.Tsit5(), rtol, atol, first_step=1 / rate), (
            f"Tsit5 (explicit): {free.size} unknowns are too many for a stiff solver's dense matrices; {measured}, "
            f"so a step may need about {steps:.0f} of the {explicit.max_steps} substeps allowed"
        )
    if dtype.itemsize < 8:
        raise ValueError(
            f"This flow is stiff (step size times fastest rate = {stiffness:.3g}) and needs float64 for an "
            "implicit solver.\n"
            'Run `jax.config.update("jax_enable_x64", True)` before making any array, or use a smaller step size.'
        )
    exponential = ExponentialRosenbrock(rtol, atol)
    refused = exponential.why_unsupported(energy, geometry, state)
    if refused is None:
        return exponential, f"ExponentialRosenbrock (stiff): {measured} ≥ {_STIFF:.0f}, and the metric is constant"
    return ODESolver(diffrax.Kvaerno5(), rtol, atol), f"Kvaerno5 (stiff): {measured} ≥ {_STIFF:.0f}; {refused}"


def _measured_rate(energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> Any:
    # A function with a reverse rule of its own only (`jax.custom_vjp`) cannot be differentiated forwards.
    try:
        return _largest_rate(energy, geometry, state)
    except TypeError as error:
        if "custom_vjp" in str(error):
            return None
        raise


@eqx.filter_jit
def _largest_rate(energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> Array:
    """The largest rate |λ| of the linearised flow, by power iteration from a fixed start."""
    here, unravel = ravel_pytree(moving(state))

    def field(flat: Array) -> Array:
        point = eqx.combine(unravel(flat), state)
        tangent = geometry.at(point).steepest_descent(first_variation(energy, point)).tangent
        return ravel_pytree(tangent)[0]

    def body(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        direction, _ = carry
        image = jax.jvp(field, (here,), (direction,))[1]
        size = jnp.linalg.norm(image)
        return image / jnp.where(size > 0, size, 1), size

    start = jax.random.normal(jax.random.key(0), here.shape, here.dtype)
    return jax.lax.fori_loop(0, 24, body, (start / jnp.linalg.norm(start), jnp.zeros((), here.dtype)))[1]
