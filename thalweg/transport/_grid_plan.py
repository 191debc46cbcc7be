r"""Plans between the masses at the centres of a grid's cells: entropic, scaled to exact marginals, axis by axis.

The kernel $e^{-|x-y|^2/\varepsilon}$ is a product over the axes, so a step of Sinkhorn's iteration costs $O(dNn)$ for
$N = n^d$ cells, in logarithms, with nothing of size $N^2$.

A plan scaled down to its marginals leaves some mass over. Sent at random, as the proof of Altschuler, Weed and Rigollet
has it, that would cost its share of the squared diameter, which was most of the gap. So it is the start of a next plan
with 16 times the $\varepsilon$ and the same potential, and only what the last layer leaves goes at random.

**Source:** Solomon et al., *Convolutional Wasserstein distances* (2015); the rounding: Altschuler, Weed, Rigollet
(2017), algorithm 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Flag, Scalar, ScalarLike
from thalweg.states import Grid
from thalweg.transport._sinkhorn import EntropicCoupling, annealed

# Rows of an axis that are summed at once.
_ROWS = 16
# How many plans there are, by how much epsilon grows from one to the next, and the sweeps that each begins with.
_LAYERS, _GROWTH, _SWEEPS = 3, 16.0, 10


class Plan(NamedTuple):
    """The coupling of the cells, its cost, the images' means and by how much of the mass it misses its marginals."""

    coupling: EntropicCoupling
    cost: Scalar
    images: Array
    missed: Scalar


def _apart(grid: Grid, axis: int, points: Array, point: Array) -> Array:
    """From a point to others along one axis, the shorter way around."""
    apart = points - point
    if grid.is_periodic(axis):
        period = grid.upper[axis] - grid.lower[axis]
        apart = apart - period * jnp.round(apart / period)
    return apart


def _log_sum(exponents: Array) -> Array:
    """The logarithm of the sum of exponentials along the first axis; a line of empty cells has a derivative, zero."""
    top = jax.lax.stop_gradient(jnp.max(exponents, axis=0, keepdims=True))
    empty = jnp.isneginf(top)
    top = jnp.where(empty, 0, top)
    total = jnp.sum(jnp.exp(exponents - top), axis=0, keepdims=True)
    return jnp.where(empty, -jnp.inf, top + jnp.log(jnp.where(empty, 1, total)))[0]


def _soft_sum(log_masses: Array, grid: Grid, rate: Scalar, tilt: Array) -> Array:
    r"""$\log\sum_y e^{z(y) - r|x - y|^2 + t\cdot(y - x)}$ at every cell x, axis by axis."""
    for axis in range(grid.dim):
        points = grid.axis_centres(axis).astype(log_masses.dtype)
        lines = jnp.moveaxis(log_masses, axis, 0)

        def row(point: Array, lines: Array = lines, points: Array = points, axis: int = axis) -> Array:
            ways = _apart(grid, axis, points, point)
            exponent = tilt[axis] * ways - rate * ways**2
            return _log_sum(lines + exponent.reshape((-1,) + (1,) * (lines.ndim - 1)))

        log_masses = jnp.moveaxis(jax.lax.map(row, points, batch_size=_ROWS), 0, axis)
    return log_masses


def _softly(masses: Array, potential: Array, grid: Grid, epsilon: Scalar) -> Array:
    """The soft c-transform of a potential of some masses."""
    flat = jnp.zeros((grid.dim,), masses.dtype)
    return -epsilon * _soft_sum(jnp.log(masses) + potential / epsilon, grid, 1 / epsilon, flat)


def entropic_potential(
    masses_a: Array, masses_b: Array, grid: Grid, epsilon: float, tolerance: float, max_steps: int
) -> tuple[Array, Flag]:
    """Sinkhorn's potential of the start, for the cost $|x - y|^2$, and whether the iteration converged."""
    size = sum((upper - lower) ** 2 for lower, upper in zip(grid.lower, grid.upper, strict=True))
    return annealed(
        lambda f, now: _softly(masses_a, f, grid, now),
        lambda g, now: _softly(masses_b, g, grid, now),
        *(masses_a, jnp.asarray(size, masses_a.dtype), epsilon, tolerance, max_steps),
    )


def swept(
    potential: Array, masses_a: Array, masses_b: Array, grid: Grid, epsilon: ScalarLike, number: int | Count
) -> Array:
    """A potential of the start after some of Sinkhorn's steps at one temperature."""
    epsilon = jnp.asarray(epsilon, potential.dtype)
    sweep = lambda _, f: _softly(masses_b, _softly(masses_a, f, grid, epsilon), grid, epsilon)  # noqa: E731
    return jax.lax.fori_loop(0, number, sweep, potential)


def plan_of(potential: Array, masses_a: Array, masses_b: Array, grid: Grid, epsilon: float) -> Plan:
    r"""A plan with exact marginals near a potential $\varphi$ of the start, in layers from $\varepsilon$ upwards.

    **Arguments:** `masses_a`, `masses_b`: of the cells, of sum one.
    """
    flat = jnp.zeros((grid.dim,), potential.dtype)

    def layer(left_over: tuple[Array, Array], epsilon: Scalar) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        w, v = left_over
        rate = 1 / epsilon
        sums = lambda z: _soft_sum(z, grid, rate, flat)  # noqa: E731
        f = swept(potential, w, v, grid, epsilon, _SWEEPS)
        # Where nothing is left for a layer its potential is not finite, and of no use.
        f = jnp.where(jnp.isfinite(f), f, 0)
        left, right = jnp.log(w) + rate * f, jnp.log(v) + rate * _softly(w, f, grid, epsilon)
        left = left + jnp.where(w > 0, jnp.minimum(jnp.log(w) - left - sums(right), 0), 0)
        right = right + jnp.where(v > 0, jnp.minimum(jnp.log(v) - right - sums(left), 0), 0)
        left, right = (jnp.where(jnp.isnan(z), -jnp.inf, z) for z in (left, right))
        rows, columns = jnp.exp(left + sums(right)), jnp.exp(right + sums(left))
        # Σ P |x − y|² is the derivative of Σ P by minus the rate, and the mean of y − x that by the tilt.
        by_rate = lambda r: jnp.sum(jnp.exp(left + _soft_sum(right, grid, r, flat)))  # noqa: E731
        cost = -jax.jvp(by_rate, (rate,), (jnp.ones_like(rate),))[1]
        tilted = lambda tilt: _soft_sum(right, grid, rate, tilt)  # noqa: E731
        shift = [rows * jax.jvp(tilted, (flat,), (flat.at[k].set(1),))[1] for k in range(grid.dim)]
        return (jnp.maximum(w - rows, 0), jnp.maximum(v - columns, 0)), (
            *(left, right, rows, columns, cost),
            jnp.stack(shift, axis=-1),
        )

    epsilons = tuple(epsilon * _GROWTH**k for k in range(_LAYERS))
    left_over, layers = jax.lax.scan(layer, (masses_a, masses_b), jnp.asarray(epsilons, potential.dtype))
    left, right, rows, columns, cost, shift = layers
    missing, share = left_over
    share = share / jnp.where(jnp.sum(share) > 0, jnp.sum(share), 1)
    rows = jnp.sum(rows, 0) + missing * jnp.sum(share)
    columns = jnp.sum(columns, 0) + share * jnp.sum(missing)
    missed = jnp.maximum(jnp.sum(jnp.abs(rows - masses_a)), jnp.sum(jnp.abs(columns - masses_b)))
    random, mean_ways = _at_random(missing, share, grid)
    points = grid.centres.astype(potential.dtype)
    held = jnp.where(masses_a > 0, masses_a, 1)[..., None]
    images = points + (jnp.sum(shift, 0) + missing[..., None] * mean_ways) / held
    flat_points = points.reshape(-1, grid.dim)
    coupling = EntropicCoupling(
        *(flat_points, flat_points, left.reshape(_LAYERS, -1), right.reshape(_LAYERS, -1)),
        *((missing.ravel(), share.ravel()), epsilons),
        tuple(grid.upper[k] - grid.lower[k] if grid.is_periodic(k) else None for k in range(grid.dim)),
    )
    return Plan(coupling, jnp.sum(cost) + random, images, missed)


def _at_random(missing: Array, share: Array, grid: Grid) -> tuple[Scalar, Array]:
    """What it costs to send all of `missing` to all of `share`, and the mean way from each cell."""
    cost, ways = jnp.zeros((), missing.dtype), []
    for axis in range(grid.dim):
        others = tuple(k for k in range(grid.dim) if k != axis)
        points = grid.axis_centres(axis).astype(missing.dtype)
        apart = _apart(grid, axis, points[None], points[:, None])
        starts, ends = jnp.sum(missing, others), jnp.sum(share, others)
        cost = cost + starts @ (apart**2 @ ends)
        mean = (apart @ ends).reshape([-1 if k == axis else 1 for k in range(grid.dim)])
        ways.append(jnp.broadcast_to(mean, grid.shape))
    return cost, jnp.stack(ways, axis=-1)
