r"""The Monge–Ampère equation of a JKO step on nested grids.

On the coarsest grid an implicit Euler step is start enough, with a floor first; from there on grids that are twice as
fine each start at what the one before them found. Jumps are softened on the finest grid, and the coarser ones have the
means of that, averaged once more: a front that has come to rest against one softness fits the next one badly, and
sharper jumps than a cell wide fold the map of a coarse grid.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Flag, Scalar
from thalweg.energies import Decomposition
from thalweg.schemes._implicit_euler import implicit_euler
from thalweg.schemes.proximal_solvers._conjugate import Conjugate
from thalweg.schemes.proximal_solvers._front import RINGS
from thalweg.schemes.proximal_solvers._monge_ampere_equation import Equation, Frame, Point, floor_of
from thalweg.schemes.proximal_solvers._monge_ampere_newton import Found, solved
from thalweg.states import Grid, GridDensity
from thalweg.transport._filling import smoothly_filled
from thalweg.transport._image_mass import carried, mass_table, moves
from thalweg.transport._jumps import averaged, softened, softness

# An axis is not made coarser than this.
_COARSEST = 64
# What is less than this part of the largest density is a tail.
_TAIL = 1e-3
# A coarse grid is solved to this residual: the next one starts with an error of its own that is larger.
_COARSE_ENOUGH = 1e-4
# What was softened is made so much steeper and cut off, so that it ends with a slope, like a front, and not in a tail.
_STEEPER = 1.15
# The logarithm of a density with entropy changes by no more than this in a step; in a second attempt by less.
_MOST_CHANGE = (1.0, 0.2)
# What an implicit Euler step is solved to: a start.
_EULER_TOLERANCE = 1e-3


class Outcome(NamedTuple):
    r"""What was found on the finest grid, as a step.

    `distance`: the cost of the plan; `gap`: with it, the primal less the dual by its transforms; `short`: what
    $F(q) - F(q^+)$ lacks of $D/2\tau$; `unresolved`: by how much F of the cells that a front cuts is not F of their
    parts, which the step minimises; `solved`: whether the equation is, by a map that does not fold; `fine`: whether F
    falls enough besides; `open`: whether what it lacks is less than what is unresolved.
    """

    found: Found
    density: Array
    distance: Scalar
    gap: Scalar
    short: Scalar
    unresolved: Scalar
    solved: Flag
    fine: Flag
    open: Flag


class Level(NamedTuple):
    """A step on one grid of the nest."""

    state: GridDensity
    potential: Array
    internal: Conjugate
    step_size: Scalar

    @classmethod
    def of(cls, structure: Decomposition, state: GridDensity, step_size: Scalar) -> "Level":
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
        table, f = mass_table(values, self.grid), self.own_pressure()
        arrived = carried(table, moves(f, self.grid, self.step_size), self.grid)
        return jnp.sum(jnp.abs(arrived - self.internal.density(f - self.potential))) / jnp.sum(values)

    @property
    def rounding(self) -> float:
        """What the sums of masses over the grid may be off by, as a share of the mass."""
        return 64 * float(jnp.finfo(self.state.values.dtype).eps) * math.sqrt(self.grid.num_cells)

    def floor(self) -> Array:
        """What f is at least where there is a vacuum."""
        return floor_of(self.potential, self.internal, self.grid, self.step_size)

    def coarser(self) -> "Level | None":
        """With four cells as one; none where that would be too coarse, or the cells do not divide."""
        grid = self.grid
        if any(n % 2 or n // 2 < _COARSEST for n in grid.shape):
            return None
        coarse = Grid(grid.lower, grid.upper, tuple(n // 2 for n in grid.shape), grid.boundary)
        state = GridDensity(_means(self.state.values), coarse)
        return Level(state, _means(self.potential), self.internal, self.step_size)

    def start(self, guess: Array) -> Array:
        """The pressure of a density; for an entropy without the tails, which numerical diffusion makes, but filled."""
        own = self.potential + self.internal.derivative(guess)
        if self.internal.has_vacuum:
            return own
        return smoothly_filled(own, guess > _TAIL * jnp.max(guess), self.grid)

    def equation(self, source: Array, floor: Array) -> Equation:
        """The equation for a density."""
        table, mass = mass_table(source, self.grid), jnp.sum(source)
        return Equation(table, mass, self.potential, floor, self.internal, self.step_size, _MOST_CHANGE[0], self.grid)


def on_nested_grids(
    structure: Decomposition,
    finest: Level,
    floor: Array,
    goal: Scalar,
    max_steps: int,
    judged: Callable[[Equation, Found, Scalar], Outcome],
) -> tuple[Outcome, Scalar]:
    """The equation on the finest grid with its floor, solved to the residual `goal` where it can be: what it comes to,
    and the share of the mass that was softened.

    First with fronts; if that is not fine, all of it again without, and with an entropy in smaller steps.
    """
    levels = [finest]
    while (coarser := levels[-1].coarser()) is not None:
        levels.append(coarser)
    start, sources, softened_by = _starts(structure, levels)
    floors = [floor]
    for _ in levels[1:]:
        floors.append(_means(floors[-1]))
    equations = [level.equation(*sides) for level, *sides in zip(levels, sources, floors, strict=True)]
    coarse_enough = jnp.maximum(goal, _COARSE_ENOUGH)

    def attempt(first: Flag) -> Found:
        most = jnp.where(first, *(jnp.asarray(change, start.dtype) for change in _MOST_CHANGE))
        tried = [eqx.tree_at(lambda e: e.most_change, equation, most) for equation in equations]
        f, frame = start, tried[-1].with_floor()
        for number in reversed(range(1, len(levels))):
            found = solved(tried[number], f, frame, coarse_enough, max_steps, first)
            f, frame = _finer(found.point, levels[number], levels[number - 1], tried[number - 1])
        return solved(tried[0], f, frame, goal, max_steps, first)

    def body(carry: tuple[Count, Outcome]) -> tuple[Count, Outcome]:
        number, before = carry
        found = attempt(number == 0)
        outcome = judged(equations[0], found, softened_by)
        found = found._replace(steps=before.found.steps + found.steps, products=before.found.products + found.products)
        unresolved = jnp.maximum(before.unresolved, outcome.unresolved)
        # What either attempt leaves open counts for both: with a floor alone no cell is cut.
        left_open = before.open | (outcome.solved & (outcome.short <= unresolved))
        return number + 1, outcome._replace(found=found, unresolved=unresolved, open=left_open)

    def unfinished(carry: tuple[Count, Outcome]) -> Flag:
        number, outcome = carry
        return (number == 0) | ((number == 1) & ~outcome.fine)

    none = jnp.zeros((), jnp.int32)
    shapes = jax.eval_shape(lambda: judged(equations[0], attempt(none == 0), softened_by))
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    _, end = jax.lax.while_loop(unfinished, body, (none, empty))
    return end, softened_by


def _starts(structure: Decomposition, levels: list[Level]) -> tuple[Array, list[Array], Scalar]:
    """The pressure after an implicit Euler step on the coarsest grid; the densities with jumps softened where that
    moves them; and which share of the mass was softened.
    """
    finest, coarsest = levels[0], levels[-1]
    euler = implicit_euler(structure, None, coarsest.state, finest.step_size, _EULER_TOLERANCE, jnp.asarray(False))
    start = coarsest.start(euler.values)
    first, second = (0.5 * (w[1:, 1:] + w[:-1, :-1]) for w in moves(start, coarsest.grid, finest.step_size).corner)
    way = jnp.sqrt(first**2 + second**2)
    for _ in levels[1:]:
        way = 2 * _repeated(way)
    part = softness(finest.state.values, way, finest.grid)
    # A density with entropy has no front, and no slope to end with.
    steeper = _STEEPER if finest.internal.has_vacuum else 1.0
    sources = [softened(finest.state.values, part, finest.grid, steeper)]
    softened_by = jnp.sum(jnp.abs(sources[0] - finest.state.values)) / jnp.sum(sources[0])
    for level in levels[1:]:
        part = _means(part)
        sources.append(averaged(_means(sources[-1]), part, level.grid))
    return start, sources, softened_by


def _finer(point: Point, coarse: Level, fine: Level, equation: Equation) -> tuple[Array, Frame]:
    """What was found on a coarse grid, on the next finer one."""
    f = fine.potential + _refined(point.potential - coarse.potential, fine.grid)
    known = _repeated(point.frame.way.within(RINGS - 2))
    return jax.lax.cond(point.frame.floored, lambda: (f, equation.with_floor()), lambda: equation.with_front(f, known))


def _means(values: Array) -> Array:
    rows, columns = values.shape
    return jnp.mean(values.reshape(rows // 2, 2, columns // 2, 2), axis=(1, 3))


def _repeated(values: Array) -> Array:
    return jnp.repeat(jnp.repeat(values, 2, 0), 2, 1)


def _refined(values: Array, grid: Grid) -> Array:
    """On cells of half the width, as parts of polynomials of degree four with the means of five cells."""
    for axis in (0, 1):
        mode = "wrap" if grid.is_periodic(axis) else "symmetric"
        padded = jnp.pad(values, [(2, 2) if a == axis else (0, 0) for a in (0, 1)], mode=mode)
        n = values.shape[axis]
        beyond = [jax.lax.slice_in_dim(padded, k, n + k, axis=axis) for k in range(5)]
        rise = (22 * (beyond[3] - beyond[1]) - 3 * (beyond[4] - beyond[0])) / 128
        halves = jnp.stack([values - rise, values + rise], axis=axis + 1)
        values = halves.reshape(tuple(2 * k if a == axis else k for a, k in enumerate(values.shape)))
    return values
