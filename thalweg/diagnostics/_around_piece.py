r"""What a function with constraints and penalties does around a point where a flow has ended: whether the curvature
along its piece lasts.

As in `_surroundings`, but along curves that satisfy the constraints: $y(h) = \Pi(x + hd)$ with the nearest feasible
point $\Pi$ and d along the piece. The slope of F along one is $\langle\partial^\circ F(y), y'(h)\rangle$ with the least
subgradient, and y′ tells where a bound is in the way. A side that a bound cuts off counts as one on which F rises,
unless F has fallen on the way to the bound; then the other side alone has to agree with the model, at a length at which
$x^3$ and its like do not.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from thalweg import _compiled, _tree
from thalweg._types import Array, Flag, Scalar, State
from thalweg.diagnostics._composite import (
    LARGEST_DENSE_PIECE,
    estimated_parts,
    reduced_to_piece,
    run_compiled,
    second_order,
)
from thalweg.diagnostics._stationarity import negligible_curvature
from thalweg.diagnostics._surroundings import _FOLLOWED, _lengths, _Lines
from thalweg.energies import AbstractEnergy, decompose
from thalweg.states import moving

_SIDES = np.asarray([1.0, -1.0])
# A curve that has left its line by this part of its speed (squared) has met a bound.
_CUT = 0.01
# The relative change of the curvature over the last step where it has settled; a step of Newton's method next to an
# inflection or on the way to infinity changes it by a third or more.
_SETTLED = 0.02


class AroundPiece(NamedTuple):
    """`is_held`: F has a minimum along every curve asked. `falls`: on some side it falls ever steeper, or as far as a
    bound; `recedes`: it falls ever less steep, without a bound in the way; `step` leads there, in flat coordinates.
    """

    is_held: Flag
    falls: Flag
    recedes: Flag
    step: Array


class Feasible(AbstractEnergy):
    """F at the nearest point that satisfies the constraints."""

    energy: AbstractEnergy

    def __call__(self, state: State) -> Scalar:
        structure = decompose(self.energy)
        kinks = structure.joint_proximable(state)
        # With a step of zero the proximal map is the nearest feasible point.
        point = kinks.prox(moving(state), jnp.zeros((), _tree.dtype_of(state)))
        return structure.smooth()(eqx.combine(point, state)) + kinks.inside(point)


def around_piece(energy: AbstractEnergy, state: State, fallen: Any, gradient_norm: Any = None) -> AroundPiece:
    """What F does around a point until which it has `fallen` so much on a flow; also while JAX traces, where
    `falls` and `recedes` are not to be acted on.
    """
    flat = ravel_pytree(moving(state))[0]
    value, least = run_compiled(_least, energy, state)
    if flat.size > LARGEST_DENSE_PIECE:
        lines = run_compiled(_lines_by_products, energy, state, least)
        on_line = jnp.asarray(False)
    else:
        *parts, _ = run_compiled(second_order, energy, state, gradient_norm)
        traced = any(_tree.is_traced(part) for part in (*parts, least))
        if not traced:
            parts, least = [np.asarray(part) for part in parts], np.asarray(least)
            if not all(np.isfinite(part).all() for part in (*parts, least)):
                no = jnp.asarray(False)
                return AroundPiece(no, no, no, jnp.zeros_like(flat))
        hessian, projection, step = parts
        lines, on_line = _lines(hessian, projection, step, least, flat, jnp if traced else np)
    eps = float(jnp.finfo(flat.dtype).eps)
    numbers = (value, jnp.asarray(fallen), lines, jnp.asarray(on_line))
    if any(_tree.is_traced(leaf) for leaf in jax.tree.leaves((energy, state, numbers))):
        return _asked(energy, state, eps, *numbers)
    return _compiled.call(_asked, energy, state, eps, *numbers)


def _asked(
    energy: AbstractEnergy, state: State, eps: float, value: Scalar, fallen: Scalar, lines: _Lines, on_line: Flag
) -> AroundPiece:
    lines = jax.tree.map(lambda part: jnp.asarray(part, value.dtype), lines)
    reference = jnp.maximum(jnp.abs(value), eps * jnp.abs(fallen))
    lengths = _lengths(lines, reference, eps, jnp)
    found = _curves(energy, state, lengths, lines.directions)
    return _verdict(lines, lengths, found, 64 * eps * jnp.abs(value), on_line)


def _verdict(lines: _Lines, lengths: Array, found: Any, rounding: Scalar, on_line: Flag) -> AroundPiece:
    """Axes: lines, sides, lengths."""
    rises, outward, is_cut = found
    inward = lines.slopes[:, None] * jnp.asarray(_SIDES[None], lengths.dtype)
    steepness = jnp.maximum(jnp.abs(lines.slopes)[:, None, None], jax.lax.cummax(jnp.abs(outward), axis=2))
    promised = inward[..., None] + (lines.curvatures[:, None] * lengths)[:, None]
    holds = (outward > 0.5 * promised) & (outward < 2 * promised) & ~is_cut
    walled = is_cut & (outward >= 0) & (rises >= -rounding)
    far_enough = (lengths >= 3.9 * lengths[:, :1])[:, None]
    alone = holds & walled[:, ::-1] & far_enough
    quadratic = ((holds[:, 0] & holds[:, 1]) | alone.any(axis=1)).any(axis=-1)
    # Two lengths in a row: a slope that turns once may be a rounding error.
    turns = ((outward[..., 1:] > 0) & (outward[..., :-1] > 0)).any(axis=-1) | walled.any(axis=-1)
    is_held = jnp.where(on_line, turns.all(), quadratic.all())

    # F falls, by no more than the slopes allow: else the fall is one of rounding errors.
    lower = (rises < -rounding) & (-rises < 4 * lengths[:, None] * steepness) & ~quadratic[:, None, None]
    own = jnp.abs(lines.slopes)[:, None, None]
    steeper = (outward < 0) & (-outward > 1.5 * own) & (jnp.cumsum(outward > 0, axis=-1) <= 1)
    falling = lower & (steeper | is_cut)
    receding = jnp.all(outward <= 0, axis=-1) & (outward[..., 0] < 0) & (inward < 0) & ~is_cut.any(axis=-1)
    receding = receding & (jnp.abs(outward[..., -1]) <= jnp.abs(outward[..., 0]))
    falls = falling.any()
    score = jnp.where(falls, jnp.where(falling, -rises, -jnp.inf), jnp.where(receding[..., None], 1.0, 0.0))
    line, side, rung = jnp.unravel_index(jnp.argmax(score), score.shape)
    step = jnp.asarray(_SIDES, lengths.dtype)[side] * lengths[line, rung] * lines.directions[line]
    return AroundPiece(is_held, falls, receding.any(), step)


def settled_curvature(energy: AbstractEnergy, state: State, before: Any, gradient_norm: Any = None) -> bool:
    """Whether the diagonal of the Hessian has hardly changed from what it was `before` the last step, measured by the
    smallest curvature on the piece, both in units in which rows have size one.
    """
    if np.size(before) > LARGEST_DENSE_PIECE:
        return False
    hessian, projection, step, _ = run_compiled(second_order, energy, state, gradient_norm)
    hessian, before = np.asarray(hessian), np.asarray(before)
    free, _, along, root = reduced_to_piece(hessian, np.asarray(projection), np.asarray(step), np)
    scaled = along / root[:, None] / root[None]
    own = np.abs(np.diagonal(hessian))
    lowest = float(np.linalg.eigvalsh(scaled)[0])
    safe = lowest > 1e3 * own.size * float(np.finfo(hessian.dtype).eps)
    return bool(free.any() and safe and np.all(np.abs(own - before) <= _SETTLED * min(lowest, 1) * own))


def travels(energy: AbstractEnergy, state: State, step: Array) -> bool:
    """Whether a ray along the step satisfies the constraints as far as one looks."""
    return bool(run_compiled(_travels, energy, state, step))


def _travels(energy: AbstractEnergy, state: State, step: Array) -> Flag:
    flat, unravel = ravel_pytree(moving(state))
    way = step / jnp.linalg.norm(step) * (1e40 if jnp.finfo(flat.dtype).precision > 10 else 1e15)
    point = decompose(energy).joint_proximable(state).prox(unravel(flat + way), jnp.zeros((), flat.dtype))
    return jnp.linalg.norm(ravel_pytree(point)[0] - flat - way) <= 0.5 * jnp.linalg.norm(way)


def _least(energy: AbstractEnergy, state: State) -> tuple[Scalar, Array]:
    value, least, _ = _at(energy, state)
    return value(ravel_pytree(moving(state))[0]), least(ravel_pytree(moving(state))[0])


def _at(energy: AbstractEnergy, state: State) -> tuple[Any, Any, Any]:
    """F and its least subgradient at a feasible point, and the nearest feasible point, all of flat coordinates."""
    structure = decompose(energy)
    smooth, kinks = structure.smooth(), structure.joint_proximable(state)
    flat, unravel = ravel_pytree(moving(state))
    f = lambda z: smooth(eqx.combine(unravel(z), state)).astype(z.dtype)  # noqa: E731

    def least(z: Array) -> Array:
        return ravel_pytree(kinks.least_subgradient(unravel(z), unravel(jax.grad(f)(z))))[0]

    def nearest(z: Array) -> Array:
        return ravel_pytree(kinks.prox(unravel(z), jnp.zeros((), flat.dtype)))[0]

    return (lambda z: f(z) + kinks.inside(unravel(z)).astype(z.dtype)), least, nearest


def _curves(energy: AbstractEnergy, state: State, lengths: Array, directions: Array) -> tuple[Array, Array, Array]:
    """The rise of F, its slope outward, and whether a bound is in the way, with axes lines, sides, lengths."""
    value, least, nearest = _at(energy, state)
    flat, _ = ravel_pytree(moving(state))
    here = value(flat)

    def beside(args: tuple[Scalar, Array]) -> tuple[Scalar, Scalar, Flag]:
        length, which = args
        way = jnp.sign(length) * directions[which]
        point, speed = jax.jvp(nearest, (flat + length * directions[which],), (way,))
        lost = jnp.sum((way - speed) ** 2)
        return value(point) - here, jnp.vdot(least(point), speed), lost > _CUT * jnp.sum(way**2)

    shape = (len(directions), 2, lengths.shape[1])
    both = jnp.stack([lengths, -lengths], axis=1).ravel()
    which = jnp.repeat(jnp.arange(len(directions)), 2 * lengths.shape[1])
    small = flat.size <= LARGEST_DENSE_PIECE
    parts = jax.vmap(beside)((both, which)) if small else jax.lax.map(beside, (both, which))
    rises, slopes, cuts = (part.reshape(shape) for part in parts)
    return rises, slopes, cuts


def _lines(hessian: Any, projection: Any, step: Any, least: Any, flat: Any, xp: Any) -> tuple[_Lines, Any]:
    """The curves that are followed, and whether the piece is a line; by NumPy or, while JAX traces, by JAX."""
    size, eps = hessian.shape[0], float(xp.finfo(hessian.dtype).eps)
    free, basis, along, root = reduced_to_piece(hessian, projection, step, xp)
    inside = xp.where(free[:, None] & free[None], along, 0)
    # Directions across the piece come last.
    scaled = inside / root[:, None] / root[None] + xp.diag(xp.where(free, 0, 2 * size).astype(inside.dtype))
    values, vectors = xp.linalg.eigh(scaled)
    slope = xp.where(free, basis.T @ least, 0)
    zero = negligible_curvature(size, eps)
    newton = vectors @ (vectors.T @ (slope / root) / xp.maximum(xp.abs(values), zero))
    length = xp.sqrt(xp.sum(newton**2))
    newton = xp.where(length > 0, newton / xp.where(length > 0, length, 1), vectors[:, 0])
    first = values[:_FOLLOWED]
    lowest = vectors[:, xp.where(first < 1.5 * size, xp.arange(first.shape[0]), 0)].T
    combined = xp.concatenate([lowest, newton[None]]) / root[None]
    curvatures = xp.sum(combined * (combined @ inside), axis=1)
    spread = xp.where(free, root**2 * (basis.T**2 @ flat**2), 0)
    lines = _Lines(combined @ basis.T, combined @ slope, curvatures, zero, eps * xp.sqrt(xp.sum(spread)))
    return lines, xp.sum(free) == 1


def _lines_by_products(energy: AbstractEnergy, state: State, least: Array) -> _Lines:
    flat, reduced, project, (smallest, vector), most = estimated_parts(energy, state)
    steep = project(-least)
    norm = jnp.linalg.norm(steep)
    down = jnp.where(norm > 0, steep / jnp.where(norm > 0, norm, 1), vector)
    # Of P v the curvature on the piece is the Rayleigh quotient of v.
    directions = jax.vmap(project)(jnp.stack([vector, down]))
    curvatures = jnp.stack([smallest, jnp.vdot(down, reduced(down))])
    eps = jnp.finfo(flat.dtype).eps
    # Curvatures are not scaled here, so what is rounding of the state is in plain units too.
    return _Lines(directions, directions @ least, curvatures, 1e3 * eps * most, eps * jnp.linalg.norm(flat))
