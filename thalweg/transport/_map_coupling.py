r"""The coupling of a map between densities in the plane, and what it misses of its second marginal.

Two points on each axis of a cell go the ways of its sides, linear in between: exact for the square of the distance
where T is smooth. Where opposite sides part, T jumps within the cell or the potential has a kink at a vacuum, and the
mean of the two ways ends in the gap. There each quarter of the cell goes to the minimiser of $|x - y|^2 - \psi(y)$ over
the quarters of the cells with mass, so it arrives where there is some. It is still a map: a cell does not spread over
more than four places, so the second marginal is met only to what `missed` says.

Often the map from the end jumps less, as of a heap that parts; then the coupling is its, with both ends exchanged, and
it is the first marginal that may be missed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, Scalar
from thalweg.states import Grid
from thalweg.transport._between_cells import between_cells
from thalweg.transport._c_transform import c_transform
from thalweg.transport._distance import MapCoupling
from thalweg.transport._image_mass import moves
from thalweg.transport._plane_dual import STEP

# Sides of a cell that part by more cells than this.
_PARTS = 2.0
# A part of the mass that may be missed without a word.
MISSED = 0.02
# Nothing is sent to the emptiest cells with together this part of the mass.
_NOTHING = 1e-3
# The second marginal is compared in squares of so many cells a side: what is at the wrong place by less is not missed.
_SQUARE = 4


class _Best(NamedTuple):
    functions: tuple[Array, Array]
    coupling: MapCoupling
    lost: Scalar
    score: Scalar


def best_coupling(
    ahead: Array, behind: Array, a: Array, b: Array, value: Scalar, grid: Grid
) -> tuple[tuple[Array, Array], MapCoupling, Scalar]:
    """Of some potentials of the start, stacked, the one with the best map, with its transform; the coupling of that
    map, or of that of a potential of the end where it misses much; and the part of the mass that is missed. `value`:
    $W_2^2$, to judge by.
    """
    number = len(ahead)
    pairs = (jnp.stack([a] * number + [b]), jnp.stack([b] * number + [a]))
    candidates = (jnp.concatenate([ahead, behind[None]]), *pairs, jnp.arange(number + 1) == number)

    def one(best: _Best, candidate: tuple[Array, Array, Array, Array]) -> tuple[_Best, None]:
        f, a, b, turned = candidate
        psi = between_cells(-f, grid, STEP)
        coupling, lost = _map_coupling(f, psi, a, b, grid)
        cost = coupling.expect(lambda x, y: jnp.sum((x - y) ** 2))
        score = lost + jnp.abs(cost - value) / jnp.where(value > 0, value, 1)
        nodes, images = (
            jnp.where(turned, x, y) for x, y in ((coupling.images, coupling.nodes), (coupling.nodes, coupling.images))
        )
        functions = jax.tree.map(lambda new, old: jnp.where(turned, old, new), (f, psi), best.functions)
        found = _Best(functions, MapCoupling(nodes, images, coupling.masses), lost, score)
        better = (score < best.score) & (~turned | (best.score > MISSED))
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), found, best), None

    shapes = jax.eval_shape(lambda f: _map_coupling(f, f, a, b, grid), behind)
    coupling, lost = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    start = _Best((ahead[0], behind), coupling, lost, jnp.asarray(jnp.inf, lost.dtype))
    best, _ = jax.lax.scan(one, start, candidates)
    return best.functions, best.coupling, best.lost


def _map_coupling(f: Array, psi: Array, a: Array, b: Array, grid: Grid) -> tuple[MapCoupling, Scalar]:
    """The coupling of potentials of both ends, and what it misses.

    Of the linear one and that which sends quarters the one that misses less is taken: where a few cells stretch over
    many, the quarters of a cell say little.
    """
    first, second = moves(-f, grid, STEP).normal
    sides = [(first[:-1], first[1:]), (second[:, :-1], second[:, 1:])]
    parted = jnp.zeros_like(a, bool)
    for before, after in sides:
        parted = parted | (jnp.abs(after - before) > _PARTS)
    nearest = _nearest(psi, _occupied(b), grid)
    linear, parting = (_coupling(sides, nearest, where, a, grid) for where in (jnp.zeros_like(parted), parted))
    lost = [missed(coupling, b, grid) for coupling in (linear, parting)]
    better = lost[1] < lost[0]
    return jax.tree.map(lambda x, y: jnp.where(better, y, x), linear, parting), jnp.minimum(*lost)


def _coupling(sides: list[tuple[Array, Array]], nearest: Array, parted: Array, a: Array, grid: Grid) -> MapCoupling:
    dtype = a.dtype
    spacing, centres = jnp.asarray(grid.spacing, dtype)[None, None], grid.centres.astype(dtype)
    nodes, images = [], []
    for i in (0, 1):
        for j in (0, 1):
            places = [0.5 + (2 * k - 1) * 12**-0.5 for k in (i, j)]
            ways = [before + u * (after - before) for (before, after), u in zip(sides, places, strict=True)]
            offset = jnp.asarray([u - 0.5 for u in places], dtype)[None, None]
            quarter = jnp.asarray([0.5 * k - 0.25 for k in (i, j)], dtype)[None, None]
            move = jnp.where(parted[..., None], nearest[i::2, j::2], jnp.stack(ways, axis=-1))
            nodes.append(centres + jnp.where(parted[..., None], quarter, offset) * spacing)
            images.append(nodes[-1] + move * spacing)
    masses = jnp.broadcast_to(a * (grid.cell_volume / 4), (4, *grid.shape))
    return MapCoupling(jnp.stack(nodes).reshape(-1, 2), jnp.stack(images).reshape(-1, 2), masses.ravel())


def _occupied(values: Array) -> Array:
    """All but the emptiest cells, which together hold next to nothing."""
    ordered = jnp.sort(values.ravel())
    below = jnp.cumsum(ordered)
    return values >= ordered[jnp.searchsorted(below, _NOTHING * below[-1])]


def _nearest(psi: Array, some: Array, grid: Grid) -> Array:
    """For the quarters of the cells, how many cells it is to the minimiser, shape `(2n, 2m, 2)`."""
    fine = Grid(grid.lower, grid.upper, tuple(2 * n for n in grid.shape), grid.boundary)
    for axis in range(2):
        psi = _halved(psi, axis, grid)
        some = jnp.repeat(some, 2, axis=axis)
    found, ways = c_transform(jnp.where(some, -psi, jnp.inf), fine), []
    for axis, n in enumerate(fine.shape):
        steps = found.argmin[axis] - jnp.arange(n, dtype=jnp.int32).reshape((-1, 1) if axis == 0 else (1, -1))
        if fine.is_periodic(axis):
            steps = (steps + n // 2) % n - n // 2
        ways.append(0.5 * steps.astype(psi.dtype))
    return jnp.stack(ways, axis=-1)


def _halved(values: Array, axis: int, grid: Grid) -> Array:
    """The values at the middles of the halves of cells, linear in between and beyond the last centres."""
    z = jnp.moveaxis(values, axis, 0)
    if grid.is_periodic(axis):
        slopes = jnp.diff(jnp.concatenate([z[-1:], z, z[:1]]), axis=0)
    else:
        slopes = jnp.diff(z, axis=0)
        slopes = jnp.concatenate([slopes[:1], slopes, slopes[-1:]])
    halves = jnp.stack([z - 0.25 * slopes[:-1], z + 0.25 * slopes[1:]], axis=1)
    return jnp.moveaxis(halves.reshape(-1, *z.shape[1:]), 0, axis)


def missed(coupling: MapCoupling, b: Array, grid: Grid) -> Scalar:
    """The part of the mass that arrives in another square of some cells than that where it should be."""
    masses = coupling.masses
    lower, spacing = (jnp.asarray(z, masses.dtype)[None] for z in (grid.lower, grid.spacing))
    place = (coupling.images - lower) / spacing - 0.5
    below = jnp.floor(place)
    share = place - below
    arrived = -b * grid.cell_volume
    for i in (0, 1):
        for j in (0, 1):
            weight = (share[:, 0] if i else 1 - share[:, 0]) * (share[:, 1] if j else 1 - share[:, 1])
            ends = [(below[:, axis].astype(jnp.int32) + k, grid.shape[axis]) for axis, k in enumerate((i, j))]
            at = [z % n if grid.is_periodic(k) else jnp.clip(z, 0, n - 1) for k, (z, n) in enumerate(ends)]
            arrived = arrived.at[at[0], at[1]].add(masses * weight)
    rows, columns = (-(-n // _SQUARE) for n in grid.shape)
    arrived = jnp.pad(arrived, [(0, -n % _SQUARE) for n in grid.shape])
    squares = jnp.sum(arrived.reshape(rows, _SQUARE, columns, _SQUARE), axis=(1, 3))
    return 0.5 * jnp.sum(jnp.abs(squares)) / jnp.sum(masses)
