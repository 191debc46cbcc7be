r"""The minimiser of a quadratic model in a ball, from the spectrum of its Hessian.

In the eigenbasis of the Hessian (relative to the metric) the model is $\sum_i c_i u_i + \tfrac12\lambda_i u_i^2$,
and its minimiser in $\|u\| \le R$ solves $(\lambda_i + \mu) u_i = -c_i$ with one multiplier $\mu \ge \max(0,
-\lambda_1)$: the linearly implicit step with $\alpha = 1/\mu$. Radius and step size are two names for one number, and
the first is the better one to adapt: it stays of the order of the distance over which the model can be trusted, while
$\alpha$ grows without bound as the minimum is reached.

**Source:** Moré, Sorensen, *Computing a trust region step*, SIAM J. Sci. Stat. Comput. 4 (1983); Conn, Gould, Toint,
*Trust-Region Methods* (2000), chapter 7.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from thalweg._types import Array, Flag, Scalar

_MAX_ITERATIONS = 60
_INVERSE_ITERATIONS = 4


class Spectrum(eqx.Module):
    """A quadratic model in the eigenbasis of its curvature: curvatures, slopes, and the basis (columns); the lowest
    curvature and the largest in size.
    """

    values: Array
    slopes: Array
    basis: Array
    lowest: Scalar
    largest: Scalar

    @property
    def floor(self) -> Scalar:
        """The smallest multiplier that rounding can tell from zero."""
        info = jnp.finfo(self.values.dtype)
        return info.eps * self.largest + info.tiny**0.75


def ascending(values: Array, slopes: Array, basis: Array) -> Spectrum:
    """The spectrum of curvatures that do not fall."""
    return Spectrum(values, slopes, basis, values[0], jnp.maximum(jnp.abs(values[0]), jnp.abs(values[-1])))


def along_newton(matrix: Array, slope: Array, radius: Scalar) -> tuple[Spectrum, Flag]:
    """The model along Newton's step alone, and whether that is all of it that is needed: the curvature is positive
    definite and the step inside the ball.

    A triangular factorisation tells, for a tenth of the time that all eigenvectors take. The lowest curvature is
    estimated by inverse iteration; shorter steps, if the energy asks for them, go in the same direction.
    """
    size = slope.shape[0]
    largest = jnp.max(jnp.sum(jnp.abs(matrix), axis=1))
    info = jnp.finfo(slope.dtype)
    identity = jnp.eye(size, dtype=slope.dtype)
    # A curvature that rounding cannot tell from zero is not positive.
    factor = jnp.linalg.cholesky(matrix - (size * info.eps * largest + info.tiny**0.75) * identity)
    solve = lambda right: cho_solve((factor, True), right)  # noqa: E731
    step = -solve(slope)
    length = jnp.sqrt(jnp.sum(step**2))
    unit = step / jnp.where(length > 0, length, 1)

    def invert(_: Array, vector: Array) -> Array:
        image = solve(vector)
        return image / jnp.sqrt(jnp.sum(image**2))

    vector = jax.lax.fori_loop(0, _INVERSE_ITERATIONS, invert, jnp.ones_like(slope) / size**0.5)
    lowest = vector @ matrix @ vector
    first = jnp.arange(size) == 0
    values = jnp.where(first, unit @ matrix @ unit, lowest)
    slopes = jnp.where(first, slope @ unit, 0)
    basis = jnp.where(first, unit[:, None], 0)
    is_inside = jnp.isfinite(length) & (length > 0) & (length <= radius) & jnp.isfinite(lowest)
    return Spectrum(values, slopes, basis, lowest, largest), is_inside


class BallStep(NamedTuple):
    """The minimiser in the eigenbasis, its multiplier $\\mu = 1/\\alpha$, its length, and the decrease of the model."""

    coefficients: Array
    multiplier: Scalar
    size: Scalar
    decrease: Scalar


class _Search(NamedTuple):
    multiplier: Scalar
    low: Scalar
    high: Scalar
    size: Scalar
    bend: Scalar
    count: Array
    on_edge: Flag


def minimise_in_ball(spectrum: Spectrum, radius: Scalar, least: Scalar) -> BallStep:
    r"""Minimise $c\cdot u + \tfrac12\sum\lambda_i u_i^2$ over $\|u\| \le$ `radius`, with $\mu \ge$ `least`.

    **Arguments:** `spectrum`: $\lambda_i$ and $c_i$; `radius`: may be infinite.
    """
    values, slopes, floor = spectrum.values, spectrum.slopes, spectrum.floor
    low = jnp.maximum(jnp.maximum(floor, least), -spectrum.lowest + floor)
    radius = jnp.asarray(radius, values.dtype)
    slow = values.dtype.type(1e-3)

    def at(multiplier: Scalar) -> tuple[Scalar, Scalar]:
        """‖u(μ)‖ and half of −d‖u‖²/dμ."""
        shifted = values + multiplier
        square = (slopes / shifted) ** 2
        return jnp.sqrt(jnp.sum(square)), jnp.sum(square / shifted)

    def improve(search: _Search) -> _Search:
        # 1/‖u(μ)‖ is concave and nearly linear in μ: Newton's method on it, kept between bounds.
        multiplier, size = search.multiplier, search.size
        low = jnp.where(size > radius, multiplier, search.low)
        high = jnp.where(size > radius, search.high, multiplier)
        bend = jnp.where(search.bend > 0, search.bend, 1)
        newton = multiplier + (size / radius - 1) * size**2 / bend
        between = (newton > low) & (newton < high)
        multiplier = jnp.where(between, newton, jnp.sqrt(low * high))
        size, bend = at(multiplier)
        return _Search(multiplier, low, high, size, bend, search.count + 1, search.on_edge)

    def unfinished(search: _Search) -> Flag:
        off = jnp.abs(search.size - radius) > slow * radius
        wide = search.high > search.low * (1 + 4 * jnp.finfo(values.dtype).eps)
        return search.on_edge & off & wide & (search.count < _MAX_ITERATIONS)

    size, bend = at(low)
    inside = size <= radius
    high = jnp.sqrt(jnp.sum(slopes**2)) / jnp.where(jnp.isfinite(radius), radius, 1) - spectrum.lowest + floor
    start = _Search(low, low, jnp.maximum(high, 2 * low), size, bend, jnp.zeros((), jnp.int32), ~inside)
    found = jax.lax.while_loop(unfinished, improve, start)
    multiplier, size = found.multiplier, found.size
    u = -slopes / (values + multiplier)
    # The hard case: the slope has (nearly) no part along the lowest eigenvector; go along it to the edge. Where the
    # limit on the step size alone makes the model convex, there is none.
    hard = inside & (spectrum.lowest < 0) & jnp.isfinite(radius) & (least <= -spectrum.lowest + floor)
    rest = jnp.where(hard, jnp.sqrt(jnp.maximum(radius**2 - size**2, 0)), 0)
    first = jnp.argmin(values) == jnp.arange(values.shape[0])
    u = u + jnp.where(first, jnp.where(slopes > 0, -rest, rest), 0)
    size = jnp.where(hard, jnp.sqrt(jnp.sum(u**2)), size)
    return BallStep(u, multiplier, size, -jnp.sum(u * (slopes + 0.5 * values * u)))
