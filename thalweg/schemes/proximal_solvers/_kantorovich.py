r"""The JKO step of a grid density in any dimension, by its Kantorovich dual.

$$q^+ = \operatorname{argmin}_q \frac{W_2^2(q, q_t)}{2\alpha} + \int V\,\mathrm dq + \int e(q)\,\mathrm dx, \qquad
q^+ = (e')^{-1}(f - V),$$

with $f$ the maximiser of the dual (`thalweg.transport._dual`). The squared distance is the cost of the plan that the
dual finds between points of the cells and a spline's cells; it agrees with that of the densities to $O(h^2)$.
`docs/jko.md` says what was weighed and where it fails.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Flag, Scalar
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractMetric
from thalweg.geometries.wasserstein import GridMetric
from thalweg.schemes._implicit_volume import implicit_euler
from thalweg.schemes.proximal_solvers._base import AbstractJKOSolver, JKOStep
from thalweg.schemes.proximal_solvers._conjugate import Conjugate
from thalweg.transport import _dual, _spline


class _Memory(NamedTuple):
    coefficients: Array
    known: Flag


class KantorovichNewton(AbstractJKOSolver):
    r"""Newton's method for the dual of the JKO step, on grids of one, two or three dimensions.

    It takes a potential energy plus either an entropy or one porous medium energy with $m > 1$. Mass is exact and
    $q \ge 0$. It is made for steps in which mass moves by up to a few cells, or for smooth positive densities; where a
    front moves by many cells in one step it may not converge, and the run then stops with a named result.

    **Arguments:** `tolerance`: the optimality residual, $\sum_j|\partial_j G|$ for unit mass; `points`: along each axis
    of a cell; more where a density spreads to several times its size in one step; `max_steps`: of Newton's method, its
    shortened trials counted.

    **Source:** Kitagawa, Mérigot, Thibert, *Convergence of a Newton algorithm for semi-discrete optimal transport*
    (JEMS 2019), for Newton on a Kantorovich dual; Jacobs, Lee, Léger, *The back-and-forth method for Wasserstein
    gradient flows* (ESAIM: COCV 2021), for the dual of the step.
    """

    tolerance: float = eqx.field(static=True, default=1e-6)
    points: int = eqx.field(static=True, default=1)
    max_steps: int = eqx.field(static=True, default=150)

    @property
    def distance_label(self) -> str:
        """The distance that it minimises with."""
        return "W₂² between points of the cells and a spline's cells: that of the densities to O(h²)"

    def why_unsupported(self, energy: AbstractEnergy, metric: AbstractMetric) -> str | None:
        """Why it cannot take this step, or `None` if it can."""
        if not isinstance(metric, GridMetric):
            return "`KantorovichNewton` solves the JKO step of a `GridDensity` in the Wasserstein geometry."
        if getattr(metric, "mobility", None) is not None:
            return "`KantorovichNewton` knows the quadratic cost only: use `tw.Wasserstein()` without a mobility."
        if metric.state.grid.mask is not None:
            return "`KantorovichNewton` does not serve grids with a mask: use `tw.Continuous(step_size)`."
        structure = decompose(energy)
        if structure.interaction or structure.remainder or structure.proximable or not Conjugate.serves(structure):
            return (
                "`KantorovichNewton` needs a potential energy plus one of `tw.Entropy()` and `tw.PorousMedium(m)` with "
                "m > 1, and nothing else.\nUse `tw.Continuous(step_size)` for other energies."
            )
        return None

    def init(self, energy: AbstractEnergy, metric: AbstractMetric) -> Any:
        """Nothing known."""
        assert isinstance(metric, GridMetric)
        return _Memory(jnp.zeros_like(metric.state.values), jnp.asarray(False))

    def solve(self, energy: AbstractEnergy, metric: AbstractMetric, step_size: Scalar, memory: Any) -> JKOStep:
        """One step from `metric.state`."""
        assert isinstance(metric, GridMetric)
        state = metric.state
        grid, values = state.grid, state.values
        structure = decompose(energy)
        potential = state.on_cells(structure.potential_value)
        side = _spline.side_weight(self.points)
        internal = Conjugate.of(structure, jnp.zeros((), values.dtype))
        floor = jnp.full_like(values, -jnp.inf)
        if internal.has_vacuum:
            floor = _spline.sharpened(potential, grid, side)
        # A step of implicit Euler ends near the answer, with its front, and is of the same order in the step size.
        guess = implicit_euler(structure, None, state, step_size, 1e-4, jnp.asarray(False)).values
        start = potential + internal.derivative(guess)
        # A state at rest is its own answer, to the last digit.
        own = potential + internal.derivative(values)
        share = values / jnp.sum(values)
        level = jnp.sum(share * own)
        at_rest = jnp.sum(share * jnp.abs(own - level)) <= 1e-10 * jnp.sum(share * jnp.abs(own))
        start = jnp.where(at_rest, own, start)
        solution = jax.lax.stop_gradient(
            _dual.maximise(
                _dual.Atoms.of(values, grid, self.points),
                lambda f: _response(internal, f - potential),
                floor,
                start,
                step_size,
                step_size,
                self.tolerance,
                self.max_steps,
            )
        )
        mass = jnp.sum(values)
        moved = solution.density * (mass / jnp.sum(solution.density))
        moved = moved * (mass / jnp.sum(moved))
        # F of the recomputed density would differ from its own in the last digits only, and may rise by as much.
        moved = jnp.where(at_rest & (solution.residual <= 1e-10), values, moved)
        primal = jnp.sum(potential * solution.density + internal.value(solution.density)) * grid.cell_volume
        primal = primal + solution.distance / (2 * step_size)
        fine = (solution.residual <= self.tolerance) & (solution.error < 1e-6)
        stats = {
            "duality_gap": primal - solution.value,
            "surplus": solution.surplus,
            "num_trials": solution.num_steps,
        }
        return JKOStep(
            eqx.tree_at(lambda s: s.values, state, moved),
            solution.distance,
            solution.residual,
            fine,
            _Memory(solution.coefficients, fine),
            stats,
        )


def _response(internal: Conjugate, pressure: Array) -> _dual.Response:
    r"""$(e^*)'$, its derivative and $e^*$."""
    density = internal.density(pressure)
    m = internal.exponent
    if m is None:
        slope = internal.compliance(density)
    else:
        # For m > 2 the slope is infinite at the front; a small density in its place gives a finite Newton step.
        safe = jnp.maximum(density, 1e-6 * jnp.max(density)) if m > 2 else jnp.where(density > 0, density, 1)
        slope = jnp.where(pressure > 0, internal.compliance(safe), 0)
    return _dual.Response(density, slope, internal.conjugate(pressure, density))
