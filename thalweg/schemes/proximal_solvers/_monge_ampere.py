r"""The true JKO step in the plane: the Monge–Ampère equation of its dual, on nested grids.

$$\max_f\ \int f^c\,\mathrm dq_t - \int e^*(f - V)\,\mathrm dx, \qquad q^+ = (e^*)'(f - V),$$

and at the maximum $q^+$ is what $X = y + \tau\nabla f$ carries there ([the equation and Newton's method for
it][thalweg.schemes.proximal_solvers._monge_ampere_newton]). A step is solved on a coarse grid first, where an implicit
Euler step is start enough, and from there on grids that are twice as fine each.
"""

from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp

from thalweg._types import Array, Scalar
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractMetric
from thalweg.geometries.wasserstein import GridMetric
from thalweg.schemes.proximal_solvers._base import AbstractJKOSolver, JKOStep, why_not_in_the_plane
from thalweg.schemes.proximal_solvers._conjugate import Conjugate
from thalweg.schemes.proximal_solvers._monge_ampere_grids import Level, on_nested_grids
from thalweg.transport._between_cells import between_cells
from thalweg.transport._image_mass import transport_cost

# It goes on to this part of the tolerance, or of what moves, where it can; a step may miss no more than this part of
# what moves.
_BELOW, _OF_THE_MOVE = 1e-3, 0.1
# A start of which more must be softened is too coarse for its grid.
_MOST_SOFTENED = 0.35

_NO_DERIVATIVE = "`MongeAmpereJKO` has no derivative: use `solver=tw.LinearisedJKO()`, which has."


class MongeAmpereJKO(AbstractJKOSolver):
    r"""The true JKO step in the plane, by Newton's method for the Monge–Ampère equation of its dual.

    $$q_t(y + \tau\nabla f)\,\det(I + \tau D^2f) = (e^*)'(f - V)$$

    for a potential energy plus one of: an entropy; one porous medium energy with $m > 1$, also below a ceiling
    ([`thalweg.Congestion`][]). Walls and periodic axes, no mask. Starts may have jumps and vacuum, and mass may move
    by many cells. Mass is exact, $q \ge 0$, and a density at rest is kept to rounding.

    **Arguments:** `tolerance`: the step has converged when the residual $\|E^\mathsf T(q^+ - (X^{-1})_\#q_t)\|_{L^1}$,
    with what is beyond a front gathered into the cells within, is at most this share of the mass, and a tenth of what
    moves; it goes on to a thousandth of either where it can; `max_steps`: of Newton's method on each grid.

    `path.measurements` has the `residual`, `at_front` (the same cell by cell: the error of cells that a front cuts),
    the `duality_gap` (the cost of the plan less the dual by its transforms: either sign, to the error of the cells),
    `newton_steps` and `products` on the finest grid (of a second attempt, without fronts, too), and `softened`: where
    $q_t$ jumps and its jumps move by more than three cells, they are made four cells wide for the map, by so much in
    $L^1$ as a share of the mass. The distance is that from the softened density then, too small by about the width of
    the softening; a step that softens more than a third of the mass is a named failure.

    **Source:** Benamou, Carlier, Mérigot, Oudet, *Discretization of functionals involving the Monge–Ampère operator*
    (2016), for the equation of a JKO step; Loeper, Rapetti (2005) for Newton's method. The discretisation by images of
    cells, the damping and the nested grids are of this library (`docs/jko.md`).
    """

    tolerance: float = eqx.field(static=True, default=1e-3)
    max_steps: int = eqx.field(static=True, default=40)

    takes_ceiling = True

    @property
    def distance_label(self) -> str:
        """The distance that it minimises with."""
        return "W₂², by the map between the cells"

    def why_unsupported(self, energy: AbstractEnergy, metric: AbstractMetric) -> str | None:
        """Why it cannot take this step, or `None` if it can."""
        reason = why_not_in_the_plane("MongeAmpereJKO", metric, torus=True)
        if reason is not None:
            return reason
        structure = decompose(energy)
        alone = structure.temperature is None and not structure.local
        alone = alone or (structure.temperature is not None and structure.ceiling is not None)
        others = structure.interaction or structure.remainder or structure.proximable
        if others or alone or not Conjugate.serves(structure):
            return (
                "`MongeAmpereJKO` needs a potential energy plus one of `tw.Entropy()` and `tw.PorousMedium(m)` with "
                "m > 1,\nthe latter with or without `tw.Congestion(c)`. Use `solver=tw.LinearisedJKO()` for others."
            )
        return None

    def init(self, energy: AbstractEnergy, metric: AbstractMetric) -> Any:
        """Nothing is remembered."""
        return None

    def solve(self, energy: AbstractEnergy, metric: AbstractMetric, step_size: Scalar, memory: Any) -> JKOStep:
        """One step from `metric.state`."""
        assert isinstance(metric, GridMetric)
        state = metric.state
        structure = decompose(energy)
        level = eqxi.nondifferentiable(
            Level.of(structure, state, jnp.asarray(step_size, state.values.dtype)), msg=_NO_DERIVATIVE
        )
        state, step_size = level.state, level.step_size
        would_move = level.would_move()
        goal = jnp.maximum(_BELOW * jnp.minimum(self.tolerance, would_move), level.rounding)
        # What is left may be no more than a part of what moves.
        allowed = jnp.minimum(self.tolerance, jnp.maximum(_OF_THE_MOVE * would_move, level.rounding))
        solved = jax.lax.stop_gradient(on_nested_grids(structure, level, goal, allowed, self.max_steps))
        equation, point = solved.equation, solved.found.point
        density = _with_mass(point.density, equation.mass, equation.internal.ceiling)
        # A density at rest is kept: F of one recomputed would differ in the last digits, and may rise by as much.
        at_rest = would_move <= level.rounding
        moved = jnp.where(at_rest, state.values, density)
        distance = jnp.where(at_rest, 0, transport_cost(equation.moves(point.potential), moved, state.grid))
        volume, internal = state.grid.cell_volume, equation.internal
        primal = jnp.sum(equation.potential * moved + internal.value(moved)) * volume + distance / (2 * step_size)
        f = solved.everywhere()
        conjugate = internal.conjugate(f - equation.potential, internal.density(f - equation.potential))
        there = between_cells(f, state.grid, step_size)
        stats = {
            "duality_gap": primal - jnp.sum(there * state.values - conjugate) * volume,
            "newton_steps": solved.found.steps,
            "products": solved.found.products,
            "softened": solved.softened,
            "at_front": jnp.sum(jnp.abs(point.arrived - point.density)) / equation.mass,
        }
        fine = at_rest | ((point.residual <= allowed) & (solved.softened <= _MOST_SOFTENED))
        moved = eqx.tree_at(lambda s: s.values, state, moved)
        return JKOStep(moved, distance, point.residual, fine, memory, stats)


def _with_mass(density: Array, mass: Scalar, ceiling: Array) -> Array:
    """The density with the mass to rounding: what is too much is taken from all alike, what is missing is shared out
    where there is room below the ceiling.
    """
    for _ in range(2):
        total = jnp.sum(density)
        room = jnp.where(jnp.isfinite(ceiling), ceiling - density, density)
        space = jnp.sum(room)
        share = jnp.where(space > 0, (mass - total) / jnp.where(space > 0, space, 1), 0)
        density = jnp.where(total > mass, density * (mass / total), density + room * share)
        density = jnp.minimum(density, ceiling)
    return density
