r"""The true JKO step in the plane: the Monge–Ampère equation of its dual, on nested grids.

$$\max_f\ \int f^c\,\mathrm dq_t - \int e^*(f - V)\,\mathrm dx, \qquad q^+ = (e^*)'(f - V),$$

and at the maximum $q^+$ is what $X = y + \tau\nabla f$ carries there ([the equation and Newton's method for
it][thalweg.schemes.proximal_solvers._monge_ampere_newton]). A step is solved on a coarse grid first, where an implicit
Euler step is start enough, and from there on grids that are twice as fine each.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp

from thalweg._types import Array, Scalar
from thalweg.energies import AbstractEnergy, Decomposition, decompose
from thalweg.geometries import AbstractMetric
from thalweg.geometries.wasserstein import GridMetric
from thalweg.schemes._implicit_euler import implicit_euler
from thalweg.schemes.proximal_solvers._base import AbstractJKOSolver, JKOStep
from thalweg.schemes.proximal_solvers._conjugate import Conjugate
from thalweg.schemes.proximal_solvers._monge_ampere_newton import Equation, Found, Point
from thalweg.states import Grid, GridDensity
from thalweg.transport._between_cells import between_cells
from thalweg.transport._filling import smoothly_filled
from thalweg.transport._image_mass import mass_table, moves, transport_cost
from thalweg.transport._jumps import softened

# An axis is not made coarser than this.
_COARSEST = 64
# Damping on the coarsest grid, where the start is poor, and on the others.
_FIRST_DAMPING, _LATER_DAMPING = 1.0, 0.1
# V and its double transform differ by no more than this, in units of h²/τ, where V's own map is monotone.
_OF_CELLS = 0.1
# What is less than this part of the largest density is a tail.
_TAIL = 1e-3
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

    **Arguments:** `tolerance`: the step has converged when the residual $\|q^+ - (X^{-1})_\#q_t\|_{L^1}$ is at most
    this share of the mass, and a tenth of what moves; it goes on to a thousandth of either where it can;
    `max_steps`: of Newton's method on each grid.

    `path.measurements` has the `residual`, the `duality_gap` (the cost of the plan less the dual by its transforms:
    either sign, to the error of the cells), `newton_steps` and `products` on the finest grid, and `softened`: where
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
        if not isinstance(metric, GridMetric):
            return "`MongeAmpereJKO` solves the JKO step of a `GridDensity` in the Wasserstein geometry."
        if getattr(metric, "mobility", None) is not None:
            return "`MongeAmpereJKO` knows the quadratic cost only: use `tw.Wasserstein()` without a mobility."
        grid = metric.state.grid
        if grid.dim != 2 or grid.mask is not None:
            return (
                "`MongeAmpereJKO` is for grids of two dimensions without a mask; this one has shape "
                f"{grid.shape}.\nUse `solver=tw.LinearisedJKO()` or `tw.Continuous(step_size)`."
            )
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
            _Level.of(structure, state, jnp.asarray(step_size, state.values.dtype)), msg=_NO_DERIVATIVE
        )
        state, step_size = level.state, level.step_size
        solved = jax.lax.stop_gradient(self._on_nested_grids(structure, level))
        equation, point = solved.equation, solved.found.point
        density = _with_mass(point, equation)
        # A density at rest is kept: F of one recomputed would differ in the last digits, and may rise by as much.
        at_rest = solved.would_move <= level.rounding
        moved = jnp.where(at_rest, state.values, density)
        distance = jnp.where(at_rest, 0, transport_cost(equation.moves(point.potential), moved, state.grid))
        volume, internal = state.grid.cell_volume, equation.internal
        primal = jnp.sum(equation.potential * moved + internal.value(moved)) * volume + distance / (2 * step_size)
        there = between_cells(point.potential, state.grid, step_size)
        conjugate = internal.conjugate(point.potential - equation.potential, point.density)
        stats = {
            "duality_gap": primal - jnp.sum(there * state.values - conjugate) * volume,
            "newton_steps": solved.found.steps,
            "products": solved.found.products,
            "softened": solved.softened,
        }
        # What is left may be no more than a part of what moves.
        allowed = jnp.minimum(self.tolerance, jnp.maximum(_OF_THE_MOVE * solved.would_move, level.rounding))
        fine = at_rest | ((point.residual <= allowed) & (solved.softened <= _MOST_SOFTENED))
        moved = eqx.tree_at(lambda s: s.values, state, moved)
        return JKOStep(moved, distance, point.residual, fine, memory, stats)

    def _on_nested_grids(self, structure: Decomposition, level: "_Level") -> "_Solved":
        coarser = level.coarser()
        if coarser is None:
            guess = implicit_euler(structure, None, level.state, level.step_size, 1e-4, jnp.asarray(False)).values
            start, damping = level.start(guess), _FIRST_DAMPING
        else:
            pressure = self._on_nested_grids(structure, coarser).found.point.potential - coarser.potential
            start, damping = level.potential + _refined(pressure, level.grid), _LATER_DAMPING
        equation, softened_by = level.equation(start)
        would_move = level.would_move()
        goal = jnp.maximum(_BELOW * jnp.minimum(self.tolerance, would_move), level.rounding)
        found = equation.solved(equation.point(start), damping, goal, self.max_steps)
        return _Solved(found, equation, softened_by, would_move)


class _Solved(NamedTuple):
    """What was found on one grid, the equation, the share of the mass that was softened, and that which would move."""

    found: Found
    equation: Equation
    softened: Scalar
    would_move: Scalar


class _Level(NamedTuple):
    """A step on one grid of the nest."""

    state: GridDensity
    potential: Array
    internal: Conjugate
    step_size: Scalar

    @classmethod
    def of(cls, structure: Decomposition, state: GridDensity, step_size: Scalar) -> "_Level":
        internal = Conjugate.of(structure, jnp.zeros_like(step_size))
        return cls(state, state.on_cells(structure.potential_value), internal, step_size)

    @property
    def grid(self) -> Grid:
        return self.state.grid

    def own_pressure(self) -> Array:
        """V + e'(q): the answer if it is constant."""
        return self.potential + self.internal.derivative(self.state.values)

    def would_move(self) -> Scalar:
        """The share of the mass that the density's own pressure would move: zero at rest."""
        values = self.state.values
        table, no_floor = mass_table(values, self.grid), jnp.full_like(values, -jnp.inf)
        own = Equation(table, jnp.sum(values), self.potential, no_floor, self.internal, self.step_size, self.grid)
        return own.point(self.own_pressure()).residual

    @property
    def rounding(self) -> float:
        """What the sums of masses over the grid may be off by, as a share of the mass."""
        return 64 * float(jnp.finfo(self.state.values.dtype).eps) * math.sqrt(self.grid.num_cells)

    def coarser(self) -> "_Level | None":
        """With four cells as one; none where that would be too coarse, or the cells do not divide."""
        grid = self.grid
        if any(n % 2 or n // 2 < _COARSEST for n in grid.shape):
            return None
        coarse = Grid(grid.lower, grid.upper, tuple(n // 2 for n in grid.shape), grid.boundary)
        state = GridDensity(_means(self.state.values), coarse)
        return _Level(state, _means(self.potential), self.internal, self.step_size)

    def start(self, guess: Array) -> Array:
        """The pressure of a density; for an entropy without the tails, which numerical diffusion makes, but filled."""
        own = self.potential + self.internal.derivative(guess)
        if self.internal.has_vacuum:
            return own
        return smoothly_filled(own, guess > _TAIL * jnp.max(guess), self.grid)

    def equation(self, guess: Array) -> tuple[Equation, Scalar]:
        """The equation, with jumps softened where the guess moves them; and by how much."""
        values, grid = self.state.values, self.grid
        mass = jnp.sum(values)
        first, second = (0.5 * (w[1:, 1:] + w[:-1, :-1]) for w in moves(guess, grid, self.step_size).corner)
        smooth = softened(values, jnp.sqrt(first**2 + second**2), grid)
        floor = jnp.full_like(values, -jnp.inf)
        if self.internal.has_vacuum:
            floor = _monotone(self.potential, grid, self.step_size)
        table = mass_table(smooth, grid)
        equation = Equation(table, mass, self.potential, floor, self.internal, self.step_size, grid)
        return equation, jnp.sum(jnp.abs(smooth - values)) / mass


def _monotone(potential: Array, grid: Grid, step_size: Scalar) -> Array:
    """A function, or its double transform where its map is not monotone."""

    def lowered() -> Array:
        back = -between_cells(-between_cells(potential, grid, step_size), grid, step_size)
        cells = sum(h**2 for h in grid.spacing) / step_size
        return jnp.where(potential - back < _OF_CELLS * cells, potential, back)

    bends = [jnp.min(jnp.diff(way, axis=axis)) for axis, way in enumerate(moves(potential, grid, step_size).normal)]
    return jax.lax.cond(jnp.minimum(*bends) > -0.7, lambda: potential, lowered)


def _with_mass(point: Point, equation: Equation) -> Array:
    """The density of f, with the mass to rounding: what is too much is taken from all alike, what is missing is shared
    out where there is room below the ceiling.
    """
    density, ceiling, mass = point.density, equation.internal.ceiling, equation.mass
    for _ in range(2):
        total = jnp.sum(density)
        room = jnp.where(jnp.isfinite(ceiling), ceiling - density, density)
        space = jnp.sum(room)
        share = jnp.where(space > 0, (mass - total) / jnp.where(space > 0, space, 1), 0)
        density = jnp.where(total > mass, density * (mass / total), density + room * share)
        density = jnp.minimum(density, ceiling)
    return density


def _means(values: Array) -> Array:
    rows, columns = values.shape
    return jnp.mean(values.reshape(rows // 2, 2, columns // 2, 2), axis=(1, 3))


def _refined(values: Array, grid: Grid) -> Array:
    """On cells of half the width, as parts of parabolas with the cells' means."""
    for axis in (0, 1):
        mode = "wrap" if grid.is_periodic(axis) else "edge"
        padded = jnp.pad(values, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode=mode)
        n = values.shape[axis]
        rise = jax.lax.slice_in_dim(padded, 2, n + 2, axis=axis) - jax.lax.slice_in_dim(padded, 0, n, axis=axis)
        halves = jnp.stack([values - rise / 8, values + rise / 8], axis=axis + 1)
        values = halves.reshape(tuple(2 * k if a == axis else k for a, k in enumerate(values.shape)))
    return values
