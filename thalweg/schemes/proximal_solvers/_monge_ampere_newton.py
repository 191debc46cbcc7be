r"""Newton's method for the Monge–Ampère equation of a JKO step in the plane, on one grid.

$$q_t(y + \tau\nabla f)\,\det(I + \tau D^2f) = (e^*)'(f - V)$$

says that the density with pressure $f - V$ is the one that $y + \tau\nabla f$ carries there. The left side is taken
with the masses of the images of the cells ([`thalweg.transport._image_mass`][]), and Newton's equation

$$\bigl((e^*)'' - \tau\nabla\cdot(A\nabla)\bigr)\,\delta f = (X^{-1})_\#q_t - q^+, \qquad
A = q_t(X)\operatorname{cof}(I + \tau D^2f)$$

is solved by conjugate residuals, preconditioned by a multigrid cycle for the diagonal of A. Where A vanishes and
$q^+$ does not (a front that is too far out), Newton's direction empties cells one by one and makes steps of f. So a
multiple of $-\tau\nabla\cdot(q^+\nabla)$ is added to the operator, more when a step fails and less when one succeeds,
in the manner of Levenberg and Marquardt.

In a vacuum nothing determines f but that nothing may arrive there: f is V, or the largest function below V whose map is
monotone. So f has a kink at a front, by as many cells as the front moves.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Flag, Scalar, ScalarLike
from thalweg.schemes.proximal_solvers._conjugate import Conjugate
from thalweg.states import Grid, open_faces
from thalweg.transport._image_mass import (
    MassTable,
    Moves,
    carried,
    carried_and_sensitivity,
    conductances,
    moves,
    varied,
)
from thalweg.transport._multigrid import Elliptic, apply, hierarchy, v_cycle
from thalweg.transport._unsymmetric import conjugate_residuals

# Steps of the linear solver, and its tolerance.
_MOST_PRODUCTS, _FORCING = 16, 0.03
# By these the damping shrinks and grows. A step is halved twice at most.
_LESS, _MORE, _SHORTEST = 1 / 8, 8.0, 0.25
_MOST_DAMPING = 1e5
# The logarithm of a density with entropy changes by no more than this in a step.
_MOST_FACTOR = 1.0


class Point(NamedTuple):
    r"""f, its density $q^+$, the density that its map carries, and $\|q^+ - X\|_{L^1}$ as a share of the mass."""

    potential: Array
    density: Array
    arrived: Array
    residual: Scalar


class Found(NamedTuple):
    """The last point, and how many Newton steps and products it took."""

    point: Point
    steps: Count
    products: Count


class _Carry(NamedTuple):
    point: Point
    damping: Scalar
    steps: Count
    products: Count
    failed: Flag


class Equation(eqx.Module):
    """The equation on one grid. `floor`: the least that f may be, minus infinity where there is no vacuum."""

    table: MassTable
    mass: Scalar
    potential: Array
    floor: Array
    internal: Conjugate
    step_size: Scalar
    grid: Grid = eqx.field(static=True)

    def point(self, f: Array) -> Point:
        """What belongs to a function."""
        f = jnp.maximum(f, self.floor)
        arrived = carried(self.table, self.moves(f), self.grid)
        density = self.internal.density(f - self.potential)
        return Point(f, density, arrived, jnp.sum(jnp.abs(arrived - density)) / self.mass)

    def moves(self, f: Array) -> Moves:
        """Of its map."""
        return moves(f, self.grid, self.step_size)

    def solved(self, start: Point, damping: ScalarLike, tolerance: ScalarLike, max_steps: int) -> Found:
        """Newton's method from a point until the residual is at most `tolerance`, or nothing helps."""

        def unfinished(c: _Carry) -> Flag:
            going = (c.point.residual > tolerance) & (c.damping < _MOST_DAMPING) & ~c.failed
            return going & (c.steps < max_steps)

        def body(c: _Carry) -> _Carry:
            direction, products = self._direction(c.point, c.damping)

            def too_long(trial: tuple[Scalar, Point]) -> Flag:
                length, point = trial
                fell = point.residual <= (1 - 0.1 * length) * c.point.residual
                return ~fell & (length > _SHORTEST)

            def shortened(trial: tuple[Scalar, Point]) -> tuple[Scalar, Point]:
                length = 0.5 * trial[0]
                return length, self.point(c.point.potential + length * direction)

            whole = jnp.ones_like(c.damping)
            begin = (2 * whole, c.point._replace(residual=jnp.full_like(whole, jnp.inf)))
            length, trial = jax.lax.while_loop(too_long, shortened, begin)
            good = trial.residual < c.point.residual
            factor = jnp.where(length == 1, _LESS, jnp.where(length == 0.5, 1.0, 2.0))
            damping = c.damping * jnp.where(good, factor, _MORE)
            point = jax.tree.map(lambda new, old: jnp.where(good, new, old), trial, c.point)
            failed = ~jnp.all(jnp.isfinite(direction))
            return _Carry(point, damping, c.steps + 1, c.products + products, failed)

        none = jnp.zeros((), jnp.int32)
        damping = jnp.asarray(damping, self.potential.dtype)
        end = jax.lax.while_loop(unfinished, body, _Carry(start, damping, none, none, jnp.asarray(False)))
        return Found(end.point, end.steps, end.products)

    def _direction(self, point: Point, damping: Scalar) -> tuple[Array, Count]:
        f, density = point.potential, point.density
        arrived, sensitivity = carried_and_sensitivity(self.table, self.moves(f), self.grid)
        # Less than this is rounding of the sums over the grid.
        rounding = 16 * jnp.finfo(f.dtype).eps * self.mass
        live = (density > rounding) | (jnp.abs(arrived) > rounding)
        some = jnp.maximum(jnp.maximum(density, arrived), rounding)
        compliance = jnp.where(live & (density < self.internal.ceiling), self.internal.compliance(some), 0)
        newton = conductances(sensitivity, self.grid, self.step_size)
        extra = []
        for axis, h in enumerate(self.grid.spacing):
            face = damping * self.step_size / h**2 * 0.5 * (density + jnp.roll(density, -1, axis))
            extra.append(jnp.where(open_faces(self.grid, axis), face, 0))
        scale = jnp.max(compliance)
        model = _between(live, compliance, tuple(a + b for a, b in zip(newton, extra, strict=True)), scale)
        damped = _between(live, jnp.zeros_like(f), tuple(extra), jnp.zeros_like(scale))
        levels = hierarchy(model, self.grid.spacing)

        def product(x: Array) -> Array:
            x = jnp.where(live, x, 0)
            return jnp.where(live, compliance * x - varied(sensitivity, self.moves(x)) + apply(damped, x), 0)

        right = jnp.where(live, arrived - density, 0)
        precondition = lambda r: jnp.where(live, v_cycle(levels, r), 0)  # noqa: E731
        direction, products = conjugate_residuals(product, precondition, right, _FORCING, _MOST_PRODUCTS)
        if not self.internal.has_vacuum:
            # Where nearly nothing is, an exponential is far from its tangent.
            direction = jnp.clip(direction, -_MOST_FACTOR * self.internal.scale, _MOST_FACTOR * self.internal.scale)
        return direction, products


def _between(live: Array, diagonal: Array, faces: tuple[Array, ...], rest: Scalar) -> Elliptic:
    """The operator on the live cells, next to cells at zero; those have a diagonal of their own."""
    inside = []
    for axis, face in enumerate(faces):
        ahead = jnp.roll(live, -1, axis)
        diagonal = diagonal + jnp.where(live & ~ahead, face, 0) + jnp.roll(jnp.where(~live & ahead, face, 0), 1, axis)
        inside.append(jnp.where(live & ahead, face, 0))
    return Elliptic(jnp.where(live, diagonal, rest), tuple(inside))
