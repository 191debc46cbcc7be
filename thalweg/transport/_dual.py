r"""The Kantorovich dual of a proximal step on a grid, and Newton's method for it.

$$G(c) = \sum_i m_i \min_y\Bigl[\frac{|x_i - y|^2}{2\tau} + f(y)\Bigr] - \sum_k h^d\,e_k^*\bigl((Sc)_k\bigr),
\qquad f(y) = \sum_j c_j B_j(y).$$

$f$ is a quadratic spline with one coefficient per cell, the mass is a few points in each cell, and $Sc$ is the mean of
$f$ over the points of each cell. G is concave. Its gradient sets what arrives, $\sum_i m_i B_j(y_i)$, against
$h^d S q^+$ with $q^+ = (e^*)'(Sc) \ge 0$: both sides are smoothed alike, so a state at rest stays at rest exactly.

Where $e^*$ vanishes below a value (a porous medium in its vacuum), the coefficients are kept above the *floor*
$S^{-1}V$: the best choice in the continuous problem, and what makes the discrete one well conditioned. What it costs
is a surplus of mass of order $h^2$ at fronts, which is scaled away and reported.

The minimiser over y is found by Newton's method from where it was; where f bends down nearly as fast as the parabola
bends up, several starts around it are tried, since a front is a kink, which a spline does not render convex.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array, Scalar
from thalweg.states import Grid
from thalweg.transport import _spline

# Points that are moved together: their data fits the cache.
_CHUNK = 8192
# Below this relative curvature of |x − y|²/2τ + f there may be other minima nearby; they are sought at these distances.
_SUSPICIOUS, _DISTANCES = 0.6, (1.0, 2.5)
# A point's Newton step below this many cells is its last: the error left is its square.
_LAST_STEP = 1e-6
# A step that must be halved more often than this will not be taken: no progress is left.
_MOST_HALVINGS = 20


class Atoms(eqx.Module):
    """The mass to be moved: each cell that holds some is a few equally spaced points of equal mass."""

    cells: Array
    masses: Array
    num_chunks: Array
    grid: Grid = eqx.field(static=True)
    points: int = eqx.field(static=True)

    @classmethod
    def of(cls, values: Array, grid: Grid, points: int) -> "Atoms":
        """The points of a density, `points` along each axis of a cell; empty cells come last and are never visited."""
        per_cell = points**grid.dim
        lanes = max(1, min(_CHUNK // per_cell, grid.num_cells))
        chunks = -(-grid.num_cells // lanes)
        flat = values.reshape(-1)
        (cells,) = jnp.nonzero(flat > 0, size=chunks * lanes, fill_value=grid.num_cells)
        inside = cells < grid.num_cells
        cells = jnp.where(inside, cells, 0).astype(jnp.int32)
        masses = jnp.where(inside, flat[cells], 0) * (grid.cell_volume / per_cell)
        used = (jnp.sum(inside) + lanes - 1) // lanes
        shape = (chunks, lanes)
        return cls(cells.reshape(shape), masses.reshape(shape), used.astype(jnp.int32), grid, points)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Chunks, points of a cell, cells of a chunk."""
        return self.cells.shape[0], self.points**self.grid.dim, self.cells.shape[1]

    def chunk(self, number: Array) -> tuple[tuple[Array, ...], Array]:
        """The positions in cells and the masses of the points of one chunk."""
        line = (np.arange(self.points) + 0.5) / self.points - 0.5
        offsets = np.array(list(itertools.product(line, repeat=self.grid.dim)))
        cells = jax.lax.dynamic_index_in_dim(self.cells, number, keepdims=False)
        masses = jax.lax.dynamic_index_in_dim(self.masses, number, keepdims=False)
        places = []
        for axis in reversed(range(self.grid.dim)):
            n = self.grid.shape[axis]
            places.append(
                (cells % n).astype(masses.dtype)[None] + 0.5 + jnp.asarray(offsets[:, axis, None], masses.dtype)
            )
            cells = cells // n
        return tuple(reversed(places)), jnp.broadcast_to(masses[None], self.shape[1:])

    def at_rest(self) -> Array:
        """The points where they are, shape `(chunks, dim, points, cells)`."""
        return jax.vmap(lambda number: jnp.stack(self.chunk(number)[0]))(jnp.arange(self.shape[0]))


class Moved(NamedTuple):
    r"""The points moved by f: where they are, $m(1/\kappa + D^2f)^{-1}$ there (its lower triangle), what arrives at
    each coefficient, $\sum m\min$, $\sum m|x - y|^2$, and the largest error of $x = y + \tau\nabla f(y)$ in cells.
    """

    places: Array
    compliance: Array
    arrived: Array
    value: Scalar
    distance: Scalar
    error: Scalar


class Response(NamedTuple):
    r"""The density $q = (e^*)'(p)$, its derivative, and $e^*(p)$."""

    density: Array
    slope: Array
    conjugate: Array


def _factored(
    hessian: tuple[tuple[Array, ...], ...], stiffness: tuple[Any, ...]
) -> tuple[list[list[Array]], list[Array]]:
    """The factors L and d of L diag(d) Lᵀ = H + diag(stiffness), written out for many small matrices."""
    rows: list[list[Array]] = []
    pivots: list[Array] = []
    for i, row in enumerate(hessian):
        new: list[Array] = []
        for j in range(i):
            entry = row[j]
            for k in range(j):
                entry = entry - new[k] * rows[j][k] * pivots[k]
            new.append(entry / pivots[j])
        pivot = row[i] + stiffness[i]
        for k in range(i):
            pivot = pivot - new[k] ** 2 * pivots[k]
        # The floor makes a direction of descent where the matrix is not positive.
        pivots.append(jnp.maximum(pivot, 0.05 * stiffness[i]))
        rows.append(new)
    return rows, pivots


def _solved(rows: list[list[Array]], pivots: list[Array], right: list[Array]) -> list[Array]:
    x = list(right)
    d = len(x)
    for i in range(d):
        for k in range(i):
            x[i] = x[i] - rows[i][k] * x[k]
    x = [value / pivot for value, pivot in zip(x, pivots, strict=True)]
    for i in reversed(range(d)):
        for k in range(i + 1, d):
            x[i] = x[i] - rows[k][i] * x[k]
    return x


def move(atoms: Atoms, coefficients: Array, places: Array, step_size: Scalar) -> Moved:
    """Move every point to its minimum, from `places`."""
    grid, d, dtype = atoms.grid, atoms.grid.dim, coefficients.dtype
    flat = _spline.surrounded(coefficients, grid).reshape(-1)
    stiffness = tuple(h**2 / step_size for h in grid.spacing)
    rays = [np.array(k) / np.linalg.norm(k) for k in itertools.product((-1, 0, 1), repeat=d) if any(k)]
    starts = jnp.asarray(np.array([r * ray for r in _DISTANCES for ray in rays]), dtype)

    def inside(y: list[Array]) -> Array:
        return jnp.stack([v if grid.is_periodic(a) else jnp.clip(v, 0, grid.shape[a]) for a, v in enumerate(y)])

    def body(number: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        out, compliance, arrived, value, distance, error = carry
        x, mass = atoms.chunk(number)
        filled = mass > 0

        def gap(y: Array, at: _spline.Taps) -> list[Array]:
            slope = _spline.gradient(flat, at, grid)
            return [(x[a] - y[a]) * stiffness[a] - slope[a] for a in range(d)]

        def objective(y: Array) -> Array:
            cost = sum(((x[a] - y[a]) ** 2 * (0.5 * stiffness[a]) for a in range(d)), start=jnp.zeros_like(mass))
            return cost + _spline.value(flat, _spline.taps(tuple(y), grid), grid)

        def once(carry: tuple[Array, Scalar, Array]) -> tuple[Array, Scalar, Array]:
            y, _, count = carry
            at = _spline.taps(tuple(y), grid)
            step = _solved(*_factored(_spline.hessian(flat, at, grid), stiffness), gap(y, at))
            damping = jnp.where(count < 12, 1.0, 0.5).astype(dtype)
            new = inside([y[a] + jnp.clip(damping * step[a], -1.5, 1.5) for a in range(d)])
            worst = jnp.max(jnp.where(filled, jnp.max(jnp.abs(new - y), axis=0), 0))
            return new, worst, count + 1

        def settled(y: Array) -> Array:
            start = (y, jnp.asarray(jnp.inf, dtype), jnp.int32(0))
            return jax.lax.while_loop(lambda c: (c[1] > _LAST_STEP) & (c[2] < 25), once, start)[0]

        def miss(y: Array) -> Array:
            left = gap(y, _spline.taps(tuple(y), grid))
            return jnp.max(jnp.stack([jnp.abs(g) / s for g, s in zip(left, stiffness, strict=True)]), axis=0)

        def other(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            y, best = carry
            z = settled(inside(list(y + starts[number][:, None, None])))
            found = objective(z)
            better = (found < best) & (miss(z) < 1e-6)
            return jnp.where(better[None], z, y), jnp.where(better, found, best)

        y = settled(jax.lax.dynamic_index_in_dim(out, number, keepdims=False))
        at = _spline.taps(tuple(y), grid)
        pivots = _factored(_spline.hessian(flat, at, grid), stiffness)[1]
        least = jnp.min(jnp.stack([p / s for p, s in zip(pivots, stiffness, strict=True)]), axis=0)
        suspicious = jnp.any(filled & (least < _SUSPICIOUS))
        y = jax.lax.cond(
            suspicious,
            lambda y: jax.lax.fori_loop(0, starts.shape[0], other, (y, objective(y)))[0],
            lambda y: y,
            y,
        )
        at = _spline.taps(tuple(y), grid)
        factors = _factored(_spline.hessian(flat, at, grid), stiffness)
        one, none = jnp.ones_like(mass), jnp.zeros_like(mass)
        columns = [_solved(*factors, [one if i == j else none for i in range(d)]) for j in range(d)]
        inverse = jnp.stack([mass * columns[j][i] for i in range(d) for j in range(i + 1)])
        value = value + jnp.sum(mass * objective(y))
        squares = [(x[a] - y[a]) ** 2 * grid.spacing[a] ** 2 for a in range(d)]
        distance = distance + jnp.sum(mass * sum(squares[1:], start=squares[0]))
        error = jnp.maximum(error, jnp.max(jnp.where(filled, miss(y), 0)))
        return (
            jax.lax.dynamic_update_index_in_dim(out, y, number, 0),
            jax.lax.dynamic_update_index_in_dim(compliance, inverse, number, 0),
            _spline.deposit(arrived, mass, at, grid),
            value,
            distance,
            error,
        )

    zero = jnp.zeros((), dtype)
    chunks, per_cell, lanes = atoms.shape
    nothing = jnp.zeros((chunks, d * (d + 1) // 2, per_cell, lanes), dtype)
    start = (places, nothing, jnp.zeros_like(flat), zero, zero, zero)
    out, compliance, arrived, *rest = jax.lax.fori_loop(jnp.int32(0), atoms.num_chunks, body, start)
    return Moved(out, compliance, _spline.gathered(arrived.reshape([n + 2 for n in grid.shape]), grid), *rest)


def transport_product(atoms: Atoms, moved: Moved, direction: Array) -> Array:
    r"""$\sum m\,\nabla B\,(1/\kappa + D^2f)^{-1}\,\nabla B^{\mathsf T}$ times a direction: minus the Hessian of
    the first sum of G.
    """
    grid, d = atoms.grid, atoms.grid.dim
    flat = _spline.surrounded(direction, grid).reshape(-1)

    def body(number: Array, out: Array) -> Array:
        y = jax.lax.dynamic_index_in_dim(moved.places, number, keepdims=False)
        inverse = jax.lax.dynamic_index_in_dim(moved.compliance, number, keepdims=False)
        at = _spline.taps(tuple(y), grid)
        slope = _spline.gradient(flat, at, grid)

        def row(i: int) -> Array:
            entries = [inverse[max(i, j) * (max(i, j) + 1) // 2 + min(i, j)] * slope[j] for j in range(d)]
            return sum(entries[1:], start=entries[0])

        return _spline.deposit_slopes(out, tuple(row(i) for i in range(d)), at, grid)

    out = jax.lax.fori_loop(jnp.int32(0), atoms.num_chunks, body, jnp.zeros_like(flat))
    return _spline.gathered(out.reshape([n + 2 for n in grid.shape]), grid)


class DualSolution(NamedTuple):
    """The coefficients, the density (unscaled), the squared distance, the value of G, the residual (the gradient's sum
    of sizes, with the floor's sign), the surplus of mass, the largest error of a point, and the count of trials.
    """

    coefficients: Array
    density: Array
    distance: Scalar
    value: Scalar
    residual: Scalar
    surplus: Scalar
    error: Scalar
    num_steps: Array


class _Carry(NamedTuple):
    coefficients: Array
    places: Array
    direction: Array
    length: Scalar
    value: Scalar
    distance: Scalar
    residual: Scalar
    error: Scalar
    step_size: Scalar
    tries: Array
    count: Array


def maximise(
    atoms: Atoms,
    response: Callable[[Array], Response],
    floor: Array,
    start: Array,
    first_step: Scalar,
    step_size: Scalar,
    tolerance: float,
    max_steps: int,
) -> DualSolution:
    r"""Maximise G over $c \ge$ `floor`: projected Newton, by conjugate gradients, with a line search on G.

    **Arguments:** `response`: of $Sc$; `first_step`: a smaller $\tau$ to begin with, trebled until it is `step_size`:
    each problem is the start of the next.
    """
    grid = atoms.grid
    side, volume = _spline.side_weight(atoms.points), grid.cell_volume
    eps = jnp.finfo(start.dtype).eps
    rest = atoms.at_rest()

    def gradient(c: Array, moved: Moved) -> tuple[Array, Response, Scalar]:
        answer = response(_spline.smoothed(c, grid, side))
        slope = moved.arrived - volume * _spline.smoothed(answer.density, grid, side)
        return slope, answer, moved.value - volume * jnp.sum(answer.conjugate)

    def newton(c: Array, moved: Moved, slope: Array, answer: Response, step: Scalar) -> Array:
        free = ~((c <= floor) & (slope <= 0))
        right = jnp.where(free, slope, 0)
        # What weighs a coefficient that neither mass nor density touches.
        ground = 1e-8 * volume * jnp.max(answer.slope)
        scale = sum(step / h**2 for h in grid.spacing)
        diagonal = volume * _spline.smoothed(answer.slope, grid, side) + scale * moved.arrived + ground

        def product(p: Array) -> Array:
            local = _spline.smoothed(volume * answer.slope * _spline.smoothed(p, grid, side), grid, side)
            return jnp.where(free, transport_product(atoms, moved, p) + local + ground * p, p)

        def body(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            x, r, p, weight, count = carry
            image = product(p)
            length = weight / jnp.vdot(p, image)
            x, r = x + length * p, r - length * image
            z = r / diagonal
            now = jnp.vdot(r, z)
            return x, r, z + (now / weight) * p, now, count + 1

        z = right / diagonal
        first = jnp.sum(jnp.abs(right))
        begin = (jnp.zeros_like(right), right, z, jnp.vdot(right, z), jnp.int32(0))
        x = jax.lax.while_loop(
            lambda s: (jnp.sum(jnp.abs(s[1])) > 0.05 * first) & (s[3] > 0) & (s[4] < 300), body, begin
        )[0]
        return jnp.where(free, x, 0)

    def body(carry: _Carry) -> _Carry:
        # One evaluation in the loop, since compiling costs more than running: a trial is taken or shortened.
        trial = jnp.maximum(carry.coefficients + carry.length * carry.direction, floor)
        moved = move(atoms, trial, carry.places, carry.step_size)
        slope, answer, value = gradient(trial, moved)
        residual = jnp.sum(jnp.abs(jnp.where(trial <= floor, jnp.maximum(slope, 0), slope)))
        rounding = 256 * eps * (jnp.abs(value) + 1)
        good = value >= carry.value - rounding
        next_stage = good & (residual < 1e-3) & (carry.step_size < step_size)

        def taken() -> _Carry:
            direction = newton(trial, moved, slope, answer, carry.step_size)
            larger = jnp.minimum(3 * carry.step_size, step_size)
            return _Carry(
                trial,
                moved.places,
                jnp.where(next_stage, 0, direction),
                jnp.ones_like(carry.length),
                # Another step size is another G.
                jnp.where(next_stage, -jnp.inf, value),
                moved.distance,
                jnp.where(next_stage, jnp.inf, residual),
                moved.error,
                jnp.where(next_stage, larger, carry.step_size),
                jnp.zeros_like(carry.tries),
                carry.count + 1,
            )

        def shortened() -> _Carry:
            return carry._replace(length=0.5 * carry.length, tries=carry.tries + 1, count=carry.count + 1)

        return jax.lax.cond(good, taken, shortened)

    def unfinished(carry: _Carry) -> Array:
        left = (carry.residual > tolerance) | (carry.step_size < step_size)
        return left & (carry.count < max_steps) & (carry.tries < _MOST_HALVINGS)

    zero = jnp.zeros((), start.dtype)
    count = jnp.int32(0)
    begin = _Carry(
        jnp.maximum(start, floor), rest, jnp.zeros_like(start), zero + 1, zero - jnp.inf, zero, zero + jnp.inf, zero,
        jnp.minimum(first_step, step_size), count, count,
    )  # fmt: skip
    last = jax.lax.while_loop(unfinished, body, begin)
    density = response(_spline.smoothed(last.coefficients, grid, side)).density
    surplus = volume * jnp.sum(density) - jnp.sum(atoms.masses) * atoms.points**grid.dim
    return DualSolution(
        last.coefficients, density, last.distance, last.value, last.residual, surplus, last.error, last.count
    )
