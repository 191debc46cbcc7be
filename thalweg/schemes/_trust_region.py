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

import jax
import jax.numpy as jnp

from thalweg._types import Array, Scalar


class BallStep(NamedTuple):
    """The minimiser in the eigenbasis, its multiplier $\\mu = 1/\\alpha$, and the decrease of the model."""

    coefficients: Array
    multiplier: Scalar
    decrease: Scalar


def multiplier_floor(values: Array) -> Scalar:
    """The smallest multiplier that rounding can tell from zero."""
    info = jnp.finfo(values.dtype)
    return info.eps * jnp.max(jnp.abs(values)) + info.tiny**0.75


def minimise_in_ball(values: Array, slopes: Array, radius: Scalar, least: Scalar) -> BallStep:
    r"""Minimise $c\cdot u + \tfrac12\sum\lambda_i u_i^2$ over $\|u\| \le$ `radius`, with $\mu \ge$ `least`.

    **Arguments:** `values`: $\lambda_i$, ascending or not; `slopes`: $c_i$; `radius`: may be infinite.
    """
    lowest = jnp.min(values)
    floor = multiplier_floor(values)
    low = jnp.maximum(jnp.maximum(floor, least), -lowest + floor)

    def size_at(multiplier: Scalar) -> Scalar:
        return jnp.linalg.norm(slopes / (values + multiplier))

    inside = size_at(low) <= radius

    # 1/‖u(μ)‖ is concave and nearly linear in μ: Newton's method on it, kept between bounds.
    high = jnp.linalg.norm(slopes) / jnp.where(jnp.isfinite(radius), radius, 1) - lowest + floor
    high = jnp.maximum(high, 2 * low)

    def improve(carry: tuple[Scalar, Scalar, Scalar, Array]) -> tuple[Scalar, Scalar, Scalar, Array]:
        multiplier, low, high, count = carry
        u = slopes / (values + multiplier)
        size = jnp.linalg.norm(u)
        slope = -jnp.sum(u**2 / (values + multiplier)) / jnp.where(size > 0, size, 1)
        low = jnp.where(size > radius, multiplier, low)
        high = jnp.where(size > radius, high, multiplier)
        newton = multiplier + (size / radius - 1) * size / jnp.where(slope != 0, -slope, 1)
        between = (newton > low) & (newton < high)
        return jnp.where(between, newton, jnp.sqrt(low * high)), low, high, count + 1

    def unfinished(carry: tuple[Scalar, Scalar, Scalar, Array]) -> Array:
        multiplier, low, high, count = carry
        off = jnp.abs(size_at(multiplier) - radius) > 1e-3 * radius
        return ~inside & off & (count < 60) & (high > low * (1 + 4 * jnp.finfo(low.dtype).eps))

    start = (low, low, high, jnp.zeros((), jnp.int32))
    multiplier = jax.lax.while_loop(unfinished, improve, start)[0]
    multiplier = jnp.where(inside, low, multiplier)
    u = -slopes / (values + multiplier)
    # The hard case: the slope has (nearly) no part along the lowest eigenvector; go along it to the edge. Where the
    # limit on the step size alone makes the model convex, there is none.
    hard = inside & (lowest < 0) & jnp.isfinite(radius) & (least <= -lowest + floor)
    rest = jnp.sqrt(jnp.maximum(radius**2 - jnp.sum(u**2), 0))
    bottom = jnp.argmin(values)
    towards = jnp.where(slopes[bottom] > 0, -rest, rest)
    u = jnp.where(hard, u.at[bottom].add(towards), u)
    decrease = -jnp.sum(slopes * u + 0.5 * values * u**2)
    return BallStep(u, multiplier, decrease)
