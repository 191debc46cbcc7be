r"""The Monge–Ampère equation of a JKO step in the plane, on one grid.

$$q_t(y + \tau\nabla f)\,\det(I + \tau D^2f) = (e^*)'(f - V)$$

says that the density with pressure $f - V$ is the one that $y + \tau\nabla f$ carries there. The left side is taken
with the masses of the images of the cells ([`thalweg.transport._image_mass`][]).

**At a front** nothing determines f in the vacuum but that nothing may arrive there. So the dual is maximised over
those f that are given by their values g on the cells that lie wholly within the front, the known ones, and go on from
there as [`thalweg.transport._continuation`][] says, $f = Eg$: the map goes on beyond the front as it is at the front,
and has no kink there. The gradient of the dual by g is

$$E^\mathsf T\bigl((X^{-1})_\#q_t - q^+\bigr) = 0,$$

and Newton's operator $E^\mathsf T\bigl((e^*)'' - \tau\nabla\cdot(A\nabla)\bigr)E$ with $A = q_t(X)\operatorname{cof}(I
+ \tau D^2f)$, symmetric as the one without a front. What is on the rings beyond is thereby balanced against the known
cells next to it: no cell that the front cuts has an equation of its own, whose mass would be a small number and the
slope of the map anything. Nothing is counted beyond the rings; mass that does not arrive within them counts as
residual. The density of a cell at the front is the mean of $(e^*)'$ over the pressures in the cell.

**With a floor** all cells are known, and in a vacuum f is V, or the largest function below V whose map is monotone.
Then f has a kink at a front, by as many cells as the front moves, and one that moves by tens of cells is out of reach;
but f is known everywhere, however poor the start is. A density with entropy has no vacuum, and neither floor nor
front.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Flag, Scalar, ScalarLike
from thalweg.schemes.proximal_solvers._conjugate import Conjugate
from thalweg.schemes.proximal_solvers._front import COUNTED, HARDLY, RINGS, cost_with_floor, pressed, slopes, within
from thalweg.states import Grid, open_faces
from thalweg.transport._between_cells import between_cells
from thalweg.transport._continuation import Continuation, continuation, continued, everything, gathered
from thalweg.transport._image_mass import (
    MassTable,
    Moves,
    Sensitivity,
    carried_and_sensitivity,
    conductances,
    moves,
    transport_cost,
    varied,
)
from thalweg.transport._multigrid import Elliptic, apply, hierarchy, in_single_precision
from thalweg.transport._unsymmetric import conjugate_residuals

# Steps of the linear solver, and its tolerance.
_MOST_PRODUCTS, _FORCING = 16, 0.03
# So many rings count in Newton's operator.
_IN_PRODUCTS = 2
# A known cell stays one until its pressure is this part of what makes a new one.
_STAYS = 0.5
# Below this part of the pressure its spread within a cell does not matter.
_NARROW = 1e-4
# V and its double transform differ by no more than this, in units of h²/τ, where V's own map is monotone.
_OF_CELLS = 0.1


class Frame(NamedTuple):
    """How f goes on beyond the known cells; by how much the pressure varies within a cell along the axis where it
    varies more, and less; and whether there is no front but a floor.
    """

    way: Continuation
    spread: tuple[Array, Array]
    floored: Flag


class Point(NamedTuple):
    r"""f, its density $q^+$, the density that its map carries and the derivative of that, and the residual
    $\|E^\mathsf T((X^{-1})_\#q_t - q^+)\|_{L^1}$ as a share of the mass.
    """

    potential: Array
    density: Array
    arrived: Array
    sensitivity: Sensitivity
    residual: Scalar
    frame: Frame


class Equation(eqx.Module):
    """The equation on one grid: the table of $q_t$ and its mass, V, its floor (minus infinity where there is no
    vacuum), $e^*$ and τ; and by how much a step may change the logarithm of a density with entropy.
    """

    table: MassTable
    mass: Scalar
    potential: Array
    floor: Array
    internal: Conjugate
    step_size: Scalar
    most_change: ScalarLike
    grid: Grid = eqx.field(static=True)

    def moves(self, f: Array) -> Moves:
        """Of the map of f."""
        return moves(f, self.grid, self.step_size)

    def point(self, f: Array, frame: Frame) -> Point:
        """What belongs to a function."""
        f = jnp.where(frame.floored, jnp.maximum(f, self.floor), f)
        counted = frame.way.within(COUNTED)
        density = jnp.where(counted, _mean(self.internal, f - self.potential, frame.spread)[0], 0)
        density = jnp.where(frame.way.within(0) | (density > HARDLY * jnp.max(density)), density, 0)
        arrived, sensitivity = carried_and_sensitivity(self.table, self.moves(f), self.grid, counted)
        arrived = jnp.where(counted, arrived, 0)
        wrong = jnp.sum(jnp.abs(gathered(arrived - density, frame.way, COUNTED)))
        missed = jnp.where(frame.floored, 0, jnp.abs(self.mass - jnp.sum(arrived)))
        residual = jnp.where(frame.way.complete, (wrong + missed) / self.mass, jnp.inf)
        return Point(f, density, arrived, sensitivity, residual, frame)

    def with_floor(self) -> Frame:
        """All cells are known."""
        way = everything(self.grid, RINGS, self.potential.dtype)
        none = jnp.zeros_like(self.potential)
        return Frame(way, (none, none), jnp.asarray(True))

    def with_front(self, f: Array, cells: Array) -> tuple[Array, Frame]:
        """A function that is right on some cells, continued from those of them that its front does not cut."""
        return self._continued(f, cells & within(f - self.potential, 1.0, self.grid))

    def with_its_front(self, point: Point) -> tuple[Array, Frame]:
        """Continued from the cells that are known now; from all with some pressure if there was a floor."""
        f, (way, _, floored) = point.potential, point.frame
        pressure = f - self.potential
        # Beyond the second ring a line, not a parabola, says what f is.
        near = jnp.where(floored, pressed(pressure, point.density, point.arrived), way.within(2))
        stays = way.within(0) & ~floored
        return self._continued(f, near & within(pressure, 1.0, self.grid) | stays & within(pressure, _STAYS, self.grid))

    def cost(self, point: Point, density: Array) -> Scalar:
        """Of the map of a point that brings a density, its own to rounding, to its place."""

        def plain() -> Scalar:
            return transport_cost(self.moves(point.potential), density, self.grid)

        def with_floor() -> Scalar:
            given = (self.potential, density, point.arrived, self.grid, self.step_size)
            return cost_with_floor(point.potential, *given)

        return jax.lax.cond(point.frame.floored, with_floor, plain) if self.internal.has_vacuum else plain()

    def direction(self, point: Point, damping: Scalar) -> tuple[Array, Count]:
        r"""About Newton's direction, and the number of products that it took: by conjugate residuals, preconditioned by
        a multigrid cycle for the diagonal of A. Where A vanishes and $q^+$ does not, Newton's direction empties cells
        one by one and makes steps of f; so a multiple of $-\tau\nabla\cdot(q^+\nabla)$ is added.
        """
        grid, (way, _, floored) = self.grid, point.frame
        # Less than this is rounding of the sums over the grid.
        rounding = 16 * jnp.finfo(point.density.dtype).eps * self.mass
        some = (point.density > rounding) | (jnp.abs(point.arrived) > rounding)
        unknown = way.within(0) & (some | ~floored)
        compliance = self._compliance(point, unknown, rounding)
        scale = jnp.max(compliance)
        extra = self._damping(point, damping)
        newton = conductances(point.sensitivity, grid, self.step_size)
        # The sums of the rows of the operator; parabolas may make one negative.
        diagonal = jnp.maximum(gathered(compliance, way, _IN_PRODUCTS), 0.1 * compliance)
        both = tuple(a + b for a, b in zip(newton, extra, strict=True))
        cycle = in_single_precision(hierarchy(_inside(unknown, floored, diagonal, both, scale), grid.spacing))
        damped = _inside(unknown, floored, jnp.zeros_like(compliance), extra, jnp.zeros_like(scale))

        def product(x: Array) -> Array:
            x = jnp.where(unknown, x, 0)
            whole = continued(x, way, _IN_PRODUCTS + 1)
            change = gathered(compliance * whole - varied(point.sensitivity, self.moves(whole)), way, _IN_PRODUCTS)
            return jnp.where(unknown, change + apply(damped, x), 0)

        right = jnp.where(unknown, gathered(point.arrived - point.density, way, COUNTED), 0)
        precondition = lambda r: jnp.where(unknown, cycle(r), 0)  # noqa: E731
        change, products = conjugate_residuals(product, precondition, right, _FORCING, _MOST_PRODUCTS)
        if not self.internal.has_vacuum:
            # Where nearly nothing is, an exponential is far from its tangent.
            most = self.most_change * self.internal.scale
            change = jnp.clip(change, -most, most)
        return continued(change, way, RINGS), products

    def _continued(self, f: Array, known: Array) -> tuple[Array, Frame]:
        way = continuation(known, self.grid, RINGS, f.dtype)
        whole = continued(f, way, RINGS)
        first, second = (
            jnp.where(way.within(COUNTED), slope, 0) for slope in slopes(whole - self.potential, self.grid)
        )
        return whole, Frame(way, (jnp.maximum(first, second), jnp.minimum(first, second)), jnp.asarray(False))

    def _compliance(self, point: Point, unknown: Array, rounding: Scalar) -> Array:
        """The derivative of the density. With a floor, cells where something arrives yield like full ones."""
        full = jnp.maximum(jnp.maximum(point.density, point.arrived), rounding)
        full = jnp.where(unknown & (point.density < self.internal.ceiling), self.internal.compliance(full), 0)
        mean = _mean(self.internal, point.potential - self.potential, point.frame.spread)[1]
        return jnp.where(point.frame.floored, full, jnp.where(point.frame.way.within(_IN_PRODUCTS), mean, 0))

    def _damping(self, point: Point, damping: Scalar) -> tuple[Array, Array]:
        most = jnp.where(point.frame.floored, point.density, jnp.maximum(point.density, point.arrived))
        first, second = (
            jnp.where(open_faces(self.grid, axis), 0.5 * (most + jnp.roll(most, -1, axis)), 0)
            * (damping * self.step_size / h**2)
            for axis, h in enumerate(self.grid.spacing)
        )
        return first, second


def floor_of(potential: Array, internal: Conjugate, grid: Grid, step_size: Scalar) -> Array:
    """V, or its double transform where the map of V is not monotone; nothing where there is no vacuum."""
    if not internal.has_vacuum:
        return jnp.full_like(potential, -jnp.inf)

    def lowered() -> Array:
        back = -between_cells(-between_cells(potential, grid, step_size), grid, step_size)
        cells = sum(h**2 for h in grid.spacing) / step_size
        return jnp.where(potential - back < _OF_CELLS * cells, potential, back)

    bends = [jnp.min(jnp.diff(way, axis=axis)) for axis, way in enumerate(moves(potential, grid, step_size).normal)]
    return jax.lax.cond(jnp.minimum(*bends) > -0.7, lambda: potential, lowered)


def _inside(unknown: Array, floored: Flag, diagonal: Array, faces: tuple[Array, ...], rest: Scalar) -> Elliptic:
    """The operator on the unknown cells, which have a diagonal `rest` elsewhere. With a floor, what is next to them is
    zero; at a front nothing goes through the faces between.
    """
    inside = []
    for axis, face in enumerate(faces):
        ahead = jnp.roll(unknown, -1, axis)
        held = jnp.where(floored, face, 0)
        diagonal = (
            diagonal + jnp.where(unknown & ~ahead, held, 0) + jnp.roll(jnp.where(~unknown & ahead, held, 0), 1, axis)
        )
        inside.append(jnp.where(unknown & ahead, face, 0))
    return Elliptic(jnp.where(unknown, diagonal, rest), tuple(inside))


def _mean(internal: Conjugate, pressure: Array, spread: tuple[Array, Array]) -> tuple[Array, Array]:
    """The mean of $(e^*)'$ over a cell, and its derivative: along one axis exact, along the other by two points."""
    wide = jnp.maximum(spread[0], 1e-6 * jnp.max(spread[0]))
    density = compliance = jnp.zeros_like(pressure)
    for side in (-1, 1):
        middle = pressure + side * spread[1] / 12**0.5
        varies = wide > _NARROW * jnp.abs(middle)
        width = jnp.where(varies, wide, 1)
        upper, lower = middle + 0.5 * width, middle - 0.5 * width
        high, low, here = (internal.density(p) for p in (upper, lower, middle))
        mean = (internal.conjugate(upper, high) - internal.conjugate(lower, low)) / width
        density = density + 0.5 * jnp.where(varies, mean, here)
        inside = (here > 0) & (here < internal.ceiling)
        local = jnp.where(inside, internal.compliance(jnp.where(inside, here, 1)), 0)
        compliance = compliance + 0.5 * jnp.where(varies, (high - low) / width, local)
    return density, compliance
