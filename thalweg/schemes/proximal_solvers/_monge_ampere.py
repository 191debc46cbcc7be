r"""The true JKO step in the plane: the Monge–Ampère equation of its dual, on nested grids.

$$\max_f\ \int f^c\,\mathrm dq_t - \int e^*(f - V)\,\mathrm dx, \qquad q^+ = (e^*)'(f - V),$$

and at the maximum $q^+$ is what $X = y + \tau\nabla f$ carries there ([the equation and Newton's method for
it][thalweg.schemes.proximal_solvers._monge_ampere_newton]). A step is solved on a coarse grid first, where an implicit
Euler step is start enough, and from there on grids that are twice as fine each.
"""

from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp

from thalweg._types import Array, Flag, Scalar
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractMetric
from thalweg.geometries.wasserstein import GridMetric
from thalweg.schemes.proximal_solvers._base import AbstractJKOSolver, JKOStep, why_not_in_the_plane
from thalweg.schemes.proximal_solvers._conjugate import Conjugate
from thalweg.schemes.proximal_solvers._monge_ampere_equation import Equation
from thalweg.schemes.proximal_solvers._monge_ampere_grids import Level, Outcome, on_nested_grids
from thalweg.schemes.proximal_solvers._monge_ampere_newton import Found
from thalweg.transport._between_cells import between_cells

# It goes on to this part of the tolerance, or of what moves, where it can; a step may miss no more than this part of
# what moves.
_BELOW, _OF_THE_MOVE = 1e-3, 0.1
# A duality gap of more than this part of the cost, and of what the cells may cost, is that of a map that folds.
_OF_THE_COST, _OF_THE_CELLS = 0.05, 0.25
# A start of which more must be softened is too coarse for its grid.
_MOST_SOFTENED = 0.35

_NO_DERIVATIVE = "`MongeAmpereJKO` has no derivative: use `solver=tw.LinearisedJKO()`, which has."


class _Memory(NamedTuple):
    """What f is at least, and the step size that this is for."""

    floor: Array
    step_size: Scalar


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
    the softening; a step that softens more than a third of the mass is a named failure, and so is one with a duality
    gap of more than a twentieth of the cost (and a quarter of the cells' own $\sum h^2$): its map folds. `held` is one
    where a density near its equilibrium stays as it is, because by the cells that its front cuts F is not known well
    enough to tell a step from rest.

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

    def init(self, energy: AbstractEnergy, metric: AbstractMetric) -> _Memory:
        """No floor is known yet."""
        assert isinstance(metric, GridMetric)
        nothing = jnp.zeros_like(metric.state.values)
        return _Memory(nothing, jnp.full((), jnp.nan, nothing.dtype))

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
        known = memory.step_size == step_size
        floor = jax.lax.stop_gradient(jax.lax.cond(known, lambda: memory.floor, level.floor))
        # A density at rest is kept: F of one recomputed would differ in the last digits, and may rise by as much.
        at_rest = would_move <= level.rounding

        def judged(equation: Equation, found: Found, softened: Scalar) -> Outcome:
            solved = (found.point.residual <= allowed) & (softened <= _MOST_SOFTENED)
            return _outcome(level, equation, found, solved, at_rest)

        step, softened = jax.lax.stop_gradient(on_nested_grids(structure, level, floor, goal, self.max_steps, judged))
        # What the cells at a front leave open is no step.
        held = ~step.fine & step.open
        point = step.found.point
        moved = jnp.where(held, state.values, step.density)
        stats = {
            "duality_gap": step.gap,
            "newton_steps": step.found.steps,
            "products": step.found.products,
            "softened": softened,
            "at_front": jnp.sum(jnp.abs(point.arrived - point.density)) / jnp.sum(state.values),
            "held": held.astype(jnp.int32),
        }
        moved = eqx.tree_at(lambda s: s.values, state, moved)
        remembered = _Memory(floor, jax.lax.stop_gradient(step_size))
        distance = jnp.where(held, 0, step.distance)
        return JKOStep(moved, distance, point.residual, step.fine | held, remembered, stats)


def _outcome(level: Level, equation: Equation, found: Found, solved: Flag, at_rest: Flag) -> Outcome:
    state, internal, tau, point = level.state, equation.internal, level.step_size, found.point
    volume = state.grid.cell_volume
    density = _with_mass(point.density, equation.mass, internal.ceiling)
    moved = jnp.where(at_rest, state.values, density)
    distance = jnp.where(at_rest, 0, equation.cost(point, moved))

    def energies(values: Array) -> tuple[Array, Array]:
        return level.potential * values, internal.value(values)

    (potential, inner), before = energies(moved), energies(state.values)
    after = jnp.sum(potential + inner) * volume
    short = after + distance / (2 * tau) - jnp.sum(before[0] + before[1]) * volume
    sizes = sum(jnp.sum(jnp.abs(part)) for part in (potential, inner, *before)) * volume + distance / (2 * tau)
    f = jnp.where(point.density > 0, point.potential, level.potential)
    conjugate = internal.conjugate(f - level.potential, internal.density(f - level.potential))
    there = between_cells(f, state.grid, tau)
    gap = after + distance / (2 * tau) - jnp.sum(there * state.values - conjugate) * volume
    unresolved = jnp.sum(jnp.abs(potential + inner + conjugate - f * moved)) * volume
    # A map that folds carries the density as well, but at a cost that is not the dual's.
    cells = sum(h**2 for h in state.grid.spacing) * jnp.sum(moved) * volume
    solved = solved & (2 * tau * gap <= _OF_THE_COST * distance + _OF_THE_CELLS * cells)
    fine = at_rest | (solved & (short <= 64 * jnp.finfo(moved.dtype).eps * sizes))
    return Outcome(found, moved, distance, gap, short, unresolved, solved, fine, solved & (short <= unresolved))


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
