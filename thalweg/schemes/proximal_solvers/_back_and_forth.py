r"""The JKO step of a density in the plane by its dual and c-transforms, for fronts that move by many cells.

$$\max_f\ \int f^c\,\mathrm dq_t - \int e^*(f - V)\,\mathrm dx, \qquad q^+ = (e^*)'(f - V),$$

and at the maximum $q^+$ is what the plan carries there, $(X^{-1})_\#q_t$ with $X = y + \tau\nabla f$. An iteration goes
back and forth, $f \mapsto f^c \mapsto f^{cc}$, which never lowers the dual and leaves a function whose X is monotone,
however poor f was; then it takes one step along

$$\bigl((e^*)'' - \tau\nabla\cdot(q\nabla)\bigr)\,\delta f = (X^{-1})_\#q_t - q^+,$$

the Newton direction up to $(I + \tau D^2f)^{-1}$, by conjugate gradients and multigrid.
"""

from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Flag, Scalar
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractMetric
from thalweg.geometries.wasserstein import GridMetric
from thalweg.schemes._implicit_euler import implicit_euler
from thalweg.schemes.proximal_solvers._base import AbstractJKOSolver, JKOStep, why_not_in_the_plane
from thalweg.schemes.proximal_solvers._conjugate import Conjugate
from thalweg.schemes.proximal_solvers._front import cost_with_floor
from thalweg.states import Grid
from thalweg.transport._between_cells import between_cells
from thalweg.transport._image_mass import MassTable, Moves, carried, mass_table, moves, smoothed, transport_cost
from thalweg.transport._multigrid import Elliptic, apply, conjugate_gradients, hierarchy, v_cycle

# Where f and its double transform differ by less, in units of h²/τ, the difference is that of cells (h²/8τ for each
# axis) and f is kept: what goes back and forth through the cells is rough, and X takes two derivatives.
_OF_CELLS = 0.2
# The operator does not vanish in a vacuum, so that what arrives there is seen; without one it may nearly.
_IN_A_VACUUM, _IN_A_TAIL = 1e-3, 1e-10
# It goes on to this part of the tolerance, unless in so many iterations the change has not fallen by a good part.
_BELOW, _MOST_IDLE, _PROGRESS = 0.005, 12, 0.8


class _Memory(NamedTuple):
    potential: Array
    known: Flag


class _Point(NamedTuple):
    """A dual function (concave where it matters), its density, what is carried there, and the dual's value."""

    potential: Array
    density: Array
    arrived: Array
    value: Scalar


class _Carry(NamedTuple):
    point: _Point
    direction: Array
    length: Scalar
    change: Scalar
    best: Scalar
    # The least change so far, and the iterations since it last fell by a good part.
    least: Scalar
    idle: Count
    count: Count


_NO_DERIVATIVE = "`BackAndForth` has no derivative: use `solver=tw.LinearisedJKO()`, which has."


class BackAndForth(AbstractJKOSolver):
    r"""The true JKO step in the plane with walls, by c-transforms and quasi-Newton steps on the Kantorovich dual.

    It takes a potential energy plus one of: an entropy; one porous medium energy with $m > 1$; nothing but
    [`thalweg.Congestion`][]; and a ceiling on top of the former two. Starts may have jumps and vacuum, and mass may
    move by many cells. Mass is exact, $q \ge 0$, and a density at rest is kept to rounding.

    **Arguments:** `tolerance`: the step has converged when the next iteration would change the density by less than
    this in $L^1$, as a share of the mass, and raise the dual by less than this share of the plan's cost. It goes on to
    0.005 of it where it can: smooth densities reach less than 1e-4, a start with a jump some 1e-3 to 1e-2;
    `max_steps`: of the iteration.

    `path.measurements` has the larger of the two as the `residual`, the `imbalance` $\|q^+ - (X^{-1})_\#q_t\|_{L^1}$
    as a share of the mass (rougher: it holds second derivatives of f, and is large where $q_t$ jumps), the
    `duality_gap` (the cost by slopes at the cells less the dual by its transforms: either sign, to the error of the
    cells), and the number of `dual_steps`. Alone, a ceiling is softened over a pressure of $\sum h^2/4\tau$.

    **Source:** Jacobs, Lee, Léger, *The back-and-forth method for Wasserstein gradient flows* (ESAIM: COCV 2021), for
    the dual and the use of transforms; the direction and the carried density are of this library (`docs/jko.md`).
    """

    tolerance: float = eqx.field(static=True, default=1e-2)
    max_steps: int = eqx.field(static=True, default=80)

    takes_ceiling = True

    @property
    def distance_label(self) -> str:
        """The distance that it minimises with."""
        return "W₂², by the gradient of the dual function at the cells"

    def why_unsupported(self, energy: AbstractEnergy, metric: AbstractMetric) -> str | None:
        """Why it cannot take this step, or `None` if it can."""
        reason = why_not_in_the_plane("BackAndForth", metric, torus=False)
        if reason is not None:
            return reason
        structure = decompose(energy)
        if structure.interaction or structure.remainder or structure.proximable or not Conjugate.serves(structure):
            return (
                "`BackAndForth` needs a potential energy plus one of `tw.Entropy()`, `tw.PorousMedium(m)` with m > 1, "
                "and `tw.Congestion(c)`.\nUse `solver=tw.LinearisedJKO()` for other energies."
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
        structure = decompose(energy)
        cells = sum(h**2 for h in state.grid.spacing) / step_size
        internal = Conjugate.of(structure, 0.25 * cells)
        table = mass_table(state.values, state.grid)
        problem = eqxi.nondifferentiable(
            _Problem(state.values, table, state.on_cells(structure.potential_value), internal, step_size, state.grid),
            msg=_NO_DERIVATIVE,
        )
        state, step_size = eqx.tree_at(lambda s: s.values, state, problem.values), problem.step_size
        end = jax.lax.stop_gradient(self._maximise(problem, self._starts(problem, structure, state, memory)))
        density = problem.with_mass(end.point)
        # A density at rest is kept: F of one recomputed would differ in the last digits, and may rise by as much.
        at_rest = jnp.sum(jnp.abs(density - state.values)) <= 1e-11 * jnp.sum(state.values)
        moved = jnp.where(at_rest, state.values, density)
        distance = jnp.where(at_rest, 0, problem.cost(end.point, moved))
        volume, mass = state.grid.cell_volume, jnp.sum(state.values)
        primal = jnp.sum(problem.potential * moved + internal.value(moved)) * volume + distance / (2 * step_size)
        stats = {
            "imbalance": jnp.sum(jnp.abs(end.point.arrived - end.point.density)) / mass,
            "duality_gap": primal - end.point.value,
            "dual_steps": end.count,
        }
        fine = end.change <= self.tolerance
        return JKOStep(
            eqx.tree_at(lambda s: s.values, state, moved),
            distance,
            end.change,
            fine,
            _Memory(end.point.potential, fine),
            stats,
        )

    def _starts(self, problem: "_Problem", structure: Any, state: Any, memory: Any) -> Array:
        """The density's own pressure (the answer at rest), that after implicit Euler, and the last step's function."""
        own = problem.potential + problem.internal.derivative(state.values)
        if structure.ceiling is not None:
            return jnp.stack([own, jnp.where(memory.known, memory.potential, own)])
        guess = implicit_euler(structure, None, state, problem.step_size, 1e-4, jnp.asarray(False)).values
        euler = problem.potential + problem.internal.derivative(guess)
        return jnp.stack([own, euler, jnp.where(memory.known, memory.potential, own)])

    def _maximise(self, problem: "_Problem", starts: Array) -> _Carry:
        points = jax.lax.map(problem.point, starts)
        # Of those that are equal to rounding the first, which may be at rest.
        rounding = 1e-9 * (1 + jnp.abs(points.value[0]))
        first = jnp.max(points.value) <= points.value[0] + rounding
        best = jnp.where(first, 0, jnp.argmax(points.value))
        point = jax.tree.map(lambda leaf: leaf[best], points)

        def body(carry: _Carry) -> _Carry:
            trial = problem.point(carry.point.potential + carry.length * carry.direction)
            good = (trial.value >= carry.best - problem.noise) | (carry.length < 1e-3)

            def taken() -> _Carry:
                direction, change = problem.direction(trial)
                length, best = jnp.minimum(2 * carry.length, 1), jnp.maximum(carry.best, trial.value)
                fell = change < _PROGRESS * carry.least
                idle = jnp.where(fell, 0, carry.idle + 1)
                least = jnp.where(fell, change, carry.least)
                return _Carry(trial, direction, length, change, best, least, idle, carry.count + 1)

            def shortened() -> _Carry:
                return carry._replace(length=0.5 * carry.length, count=carry.count + 1)

            return jax.lax.cond(good, taken, shortened)

        direction, change = problem.direction(point)
        none = jnp.zeros((), jnp.int32)
        begin = _Carry(point, direction, jnp.ones_like(change), change, point.value, change, none, none)

        def unfinished(carry: _Carry) -> Flag:
            going = (carry.change > _BELOW * self.tolerance) & (carry.idle < _MOST_IDLE)
            return going & (carry.count < self.max_steps)

        return jax.lax.while_loop(unfinished, body, begin)


class _Problem(eqx.Module):
    values: Array
    table: MassTable
    potential: Array
    internal: Conjugate
    step_size: Scalar
    grid: Grid = eqx.field(static=True)

    @property
    def cells(self) -> Scalar:
        """$\\sum h^2/\\tau$."""
        return sum(h**2 for h in self.grid.spacing) / self.step_size

    @property
    def noise(self) -> Scalar:
        """What the cells may change of the dual."""
        return 0.05 * self.cells * jnp.sum(self.values) * self.grid.cell_volume

    def point(self, f: Array) -> _Point:
        """f made concave in the sense of transport, and raised to V where a vacuum lets it be."""
        if self.internal.has_vacuum:
            f = jnp.maximum(f, self.potential)
        there = between_cells(f, self.grid, self.step_size)
        back = -between_cells(-there, self.grid, self.step_size)
        concave = jnp.where(f - back < 0.5 * _OF_CELLS * self.cells, f, back)
        raised = jnp.maximum(concave, self.potential) if self.internal.has_vacuum else concave
        density = self.internal.density(raised - self.potential)
        arrived = carried(self.table, smoothed(self.moves(concave)), self.grid)
        conjugate = self.internal.conjugate(raised - self.potential, density)
        value = jnp.sum(there * self.values - conjugate) * self.grid.cell_volume
        return _Point(raised, density, arrived, value)

    def direction(self, point: _Point) -> tuple[Array, Scalar]:
        """The quasi-Newton direction, and the larger of two: the share of the mass that it would move, in L¹, and what
        the dual would gain, as a share of the cost of the plan. (A density at its ceiling does not show in the first.)
        """
        least = _IN_A_VACUUM if self.internal.has_vacuum else _IN_A_TAIL
        some = jnp.maximum(jnp.maximum(point.density, point.arrived), least * jnp.max(point.density))
        faces = []
        for axis, h in enumerate(self.grid.spacing):
            wall = tuple(slice(-1, None) if a == axis else slice(None) for a in range(self.grid.dim))
            faces.append((self.step_size / h**2 * 0.5 * (some + jnp.roll(some, -1, axis))).at[wall].set(0))
        full = point.density >= self.internal.ceiling
        diagonal = jnp.where(full, 0, self.internal.compliance(some))
        operator = Elliptic(diagonal, tuple(faces))
        levels = hierarchy(operator, self.grid.spacing)
        right = point.arrived - point.density
        goal = 1e-2 * jnp.sqrt(jnp.sum(right**2))
        direction, _ = conjugate_gradients(lambda u: apply(operator, u), lambda r: v_cycle(levels, r), right, goal, 30)
        following = self.internal.density(point.potential + direction - self.potential)
        change = jnp.sum(jnp.abs(following - point.density)) / jnp.sum(self.values)
        gain = 0.5 * jnp.sum(right * direction) * self.grid.cell_volume
        cost = transport_cost(self.moves(point.potential), point.density, self.grid) / (2 * self.step_size)
        mass = jnp.sum(self.values) * self.grid.cell_volume
        return direction, jnp.maximum(change, gain / (cost + self.cells * mass))

    def cost(self, point: _Point, density: Array) -> Scalar:
        """Of the map that brings a density, that of the point to its error, to its place."""
        if not self.internal.has_vacuum:
            return transport_cost(self.moves(point.potential), density, self.grid)
        given = (self.potential, density, point.arrived, self.grid, self.step_size)
        return cost_with_floor(point.potential, *given)

    def with_mass(self, point: _Point) -> Array:
        """The density at the constant in f that gives it the mass, then to rounding."""
        mass, pressure = jnp.sum(self.values), point.potential - self.potential
        low, high = -jnp.ones_like(mass), jnp.ones_like(mass)
        size = jnp.max(jnp.abs(pressure)) + self.cells

        def body(_: Any, ends: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
            low, high = ends
            middle = 0.5 * (low + high)
            less = jnp.sum(self.internal.density(pressure + size * middle)) < mass
            return jnp.where(less, middle, low), jnp.where(less, high, middle)

        low, high = jax.lax.fori_loop(0, 60, body, (low, high))
        density = self.internal.density(pressure + size * 0.5 * (low + high))
        for _ in range(2):
            density = density * (mass / jnp.sum(density))
        return jnp.minimum(density, self.internal.ceiling)

    def moves(self, f: Array) -> Moves:
        """Of the map of f."""
        return moves(f, self.grid, self.step_size)
