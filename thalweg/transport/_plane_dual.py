r"""The dual of the transport between two densities in the plane, by c-transforms and quasi-Newton steps.

$$\max_f\ \int f^c\,\mathrm db - \int f\,\mathrm da, \qquad f^c(y) = \min_x |x - y|^2 + f(x),$$

for $f = -\varphi$ on the cells of the start. Its gradient is $(X^{-1})_\#b - a$ with $X = x + \tfrac12\nabla f$, the
optimal map where it vanishes. A step goes along

$$-\tfrac12\nabla\cdot(q\nabla\,\delta f) = (X^{-1})_\#b - a,$$

q being the larger of the two, the Newton direction up to $(I + \tfrac12D^2f)^{-1}$; then $f \mapsto f^c \mapsto
f^{cc}$, which never lowers the dual and leaves a function whose X is monotone, so no density needs to be positive or
smooth.

Plain ascent of this kind (Jacobs and Léger's back-and-forth method) finds distant densities slowly, as what has not
yet met does not pull. So it begins from Sinkhorn's potential on a grid of at most 32 cells an axis, where that takes a
twentieth of a second. Half a dozen steps then leave the dual value wrong by a fraction of $h^2$.

**Source:** Jacobs, Léger, *A fast approach to optimal transport: the back-and-forth method*, Numerische Mathematik 146
(2020), for ascent by transforms; the direction, the start and the carried density are of this library.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array, Count, Flag, Scalar
from thalweg.states import Grid
from thalweg.transport._between_cells import between_cells
from thalweg.transport._grid_plan import entropic_potential
from thalweg.transport._image_mass import MassTable, carried, mass_table, moves
from thalweg.transport._multigrid import Elliptic, apply, conjugate_gradients, hierarchy, v_cycle

# The step size with which |x − y|²/2τ is |x − y|².
STEP = 0.5
# Cells along an axis on which the start is found, to this part of the mass and in so many of Sinkhorn's steps.
_COARSE, _COARSE_TOLERANCE, _COARSE_STEPS = 32, 1e-3, 3000
# Where f and its double transform differ by less, in units of h²/τ, that is of the cells, and f is kept.
_OF_CELLS = 0.1
# The operator does not vanish in a vacuum, so that what arrives there is seen.
_IN_A_VACUUM = 1e-2
# The dual may fall by the first part, which is of the cells, and stops when in so many steps it has not risen by the
# second.
_NOISE, _RISE, _MOST_IDLE = 1e-5, 3e-6, 4
_SHORTEST = 1e-2


class Dual(NamedTuple):
    r"""`potential`: $f = -\varphi$; `value`: of the dual, for densities constant in cells; `gain`: what a whole step
    from there would add to it, were it quadratic.
    """

    potential: Array
    value: Scalar
    gain: Scalar


class _Carry(NamedTuple):
    best: Dual
    potential: Array
    direction: Array
    length: Scalar
    value: Scalar
    idle: Count
    count: Count


def averages(values: Array, grid: Grid) -> Array:
    """The averages in the cells of a function of which the values at the centres are known."""
    result = values
    for axis in range(grid.dim):
        mode = "wrap" if grid.is_periodic(axis) else "edge"
        around = jnp.pad(values, [(1, 1) if k == axis else (0, 0) for k in range(grid.dim)], mode=mode)
        result = result + jnp.diff(around, 2, axis=axis) / 24
    return result


def plane_dual(a: Array, b: Array, grid: Grid, tolerance: float, max_steps: int) -> Dual:
    """Maximise, for the values of two densities of equal mass; the tolerance is a part of $W_2^2$."""
    table = mass_table(b, grid)
    start = _start(a, b, grid)
    least = jnp.asarray(-jnp.inf, start.dtype)
    zero, one = jnp.zeros((), jnp.int32), jnp.ones((), start.dtype)
    # The first step goes nowhere, so that nothing is compiled twice.
    begin = _Carry(Dual(start, least, -least), start, jnp.zeros_like(start), one, least, zero, zero)

    def body(carry: _Carry) -> _Carry:
        potential, value = _point(carry.potential + carry.length * carry.direction, a, b, grid)
        size = jnp.where(carry.count > 0, jnp.abs(carry.best.value), 0)
        good = (value >= carry.value - _NOISE * size) | (carry.length < _SHORTEST)

        def taken() -> _Carry:
            direction, gain = _direction(potential, a, table, grid)
            idle = jnp.where(value > carry.best.value + _RISE * size, 0, carry.idle + 1)
            trial = Dual(potential, value, gain)
            best = jax.tree.map(lambda new, old: jnp.where(value > carry.best.value, new, old), trial, carry.best)
            return _Carry(best, potential, direction, jnp.minimum(2 * carry.length, 1), value, idle, carry.count + 1)

        def shortened() -> _Carry:
            return carry._replace(length=0.5 * carry.length, count=carry.count + 1)

        return jax.lax.cond(good, taken, shortened)

    def unfinished(carry: _Carry) -> Flag:
        finished = (carry.best.gain <= tolerance * jnp.abs(carry.best.value)) | (carry.idle >= _MOST_IDLE)
        return (carry.count == 0) | (~finished & (carry.count < max_steps))

    return jax.lax.while_loop(unfinished, body, begin).best


def _start(a: Array, b: Array, grid: Grid) -> Array:
    """Sinkhorn's potential on a coarse grid, by cubic interpolation."""
    shape = tuple(-(-n // -(-n // _COARSE)) for n in grid.shape)
    coarse = Grid(grid.lower, grid.upper, shape, grid.boundary)
    overlaps = [jnp.asarray(_overlaps(n, m), a.dtype) for n, m in zip(grid.shape, shape, strict=True)]
    w, v = (overlaps[0] @ (z / jnp.sum(z)) @ overlaps[1].T for z in (a, b))
    epsilon = min(coarse.spacing) ** 2
    f, _ = entropic_potential(w, v, coarse, epsilon, _COARSE_TOLERANCE, _COARSE_STEPS)
    sizes = enumerate(zip(grid.shape, shape, strict=True))
    first, second = (jnp.asarray(_cubic(n, m, grid.is_periodic(axis)), a.dtype) for axis, (n, m) in sizes)
    return -(first @ f @ second.T)


def _overlaps(n: int, m: int) -> np.ndarray:
    """The part of each of n cells that lies in each of m, shape (m, n)."""
    fine, coarse = np.arange(n + 1) / n, np.arange(m + 1) / m
    upper = np.minimum(fine[None, 1:], coarse[1:, None])
    lower = np.maximum(fine[None, :-1], coarse[:-1, None])
    return n * np.maximum(upper - lower, 0)


def _cubic(n: int, m: int, periodic: bool) -> np.ndarray:
    """Cubic convolution (Keys 1981) from m centres of cells to n, shape (n, m)."""
    place = (np.arange(n) + 0.5) * m / n - 0.5
    below = np.floor(place).astype(int)
    u = place - below
    weights = [u * (-0.5 + u - 0.5 * u**2), 1 + u**2 * (-2.5 + 1.5 * u), u * (0.5 + 2 * u - 1.5 * u**2)]
    weights.append(u**2 * (-0.5 + 0.5 * u))
    matrix = np.zeros((n, m))
    for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
        at = (below + offset) % m if periodic else np.clip(below + offset, 0, m - 1)
        np.add.at(matrix, (np.arange(n), at), weight)
    return matrix


def _point(f: Array, a: Array, b: Array, grid: Grid) -> tuple[Array, Scalar]:
    """f made concave in the sense of transport, and the dual there."""
    transform = between_cells(f, grid, STEP)
    back = -between_cells(-transform, grid, STEP)
    cells = sum(h**2 for h in grid.spacing) / STEP
    concave = jnp.where(f - back < _OF_CELLS * cells, f, back)
    return concave, jnp.sum(averages(transform, grid) * b - averages(concave, grid) * a) * grid.cell_volume


def _direction(f: Array, a: Array, table: MassTable, grid: Grid) -> tuple[Array, Scalar]:
    """The quasi-Newton direction, and what a whole step of it would add to a quadratic dual."""
    arrived = carried(table, moves(f, grid, STEP), grid)
    some = jnp.maximum(jnp.maximum(a, arrived), 0) + _IN_A_VACUUM * jnp.max(a)
    faces = []
    for axis, h in enumerate(grid.spacing):
        face = STEP / h**2 * 0.5 * (some + jnp.roll(some, -1, axis))
        if not grid.is_periodic(axis):
            face = face.at[tuple(slice(-1, None) if k == axis else slice(None) for k in range(grid.dim))].set(0)
        faces.append(face)
    # Constants are not seen; a diagonal of a rounding unit keeps them small.
    operator = Elliptic(jnp.full_like(f, 1e-10 * jnp.max(faces[0])), tuple(faces))
    levels = hierarchy(operator, grid.spacing)
    right = arrived - a
    goal = 1e-2 * jnp.sqrt(jnp.sum(right**2))
    direction, _ = conjugate_gradients(lambda u: apply(operator, u), lambda r: v_cycle(levels, r), right, goal, 20)
    return direction, 0.5 * jnp.sum(right * direction) * grid.cell_volume
