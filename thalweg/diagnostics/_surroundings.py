r"""What an energy does around a point where a flow has ended: whether the quadratic model there is true.

A positive curvature proves a minimum only if it lasts: next to an inflection ($x^3$), or on the way to infinity
($e^{-x}$), Newton's method creeps on with a curvature that is positive, however small the slope has become. There the
curvature changes over the very length $\delta = |g|/\lambda$ of the step that is left, while at a minimum it stays the
same over lengths far beyond. So along the directions of the smallest curvatures, and along Newton's step, the slope is
asked at growing lengths h from $4\delta$ on, to both sides:

- where both slopes agree with the model $\lambda h \pm g$ to a factor of two, at one length, F has a minimum between;
- where the slope never turns on one side, and F falls there ever steeper, the point is no minimum at all;
- where it never turns and becomes less, F flattens, perhaps on its way to infinity.

The scale-free counterexamples fail at every length: $x^p$ with $p \ne 2$, $x^{-p}$, $e^{-x}$. Slopes are used because
they tell what is long lost in the rounding of F. At h = δ Kantorovich's condition would be the test; the larger lengths
are what makes it one of numbers with rounding errors.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from thalweg import _compiled
from thalweg._types import Array, Flag, Scalar, State
from thalweg.diagnostics._stationarity import LARGEST_DENSE, equilibrating_root, lowest_by_lanczos, negligible_curvature
from thalweg.energies import AbstractEnergy
from thalweg.states import moving

# So many of the smallest curvatures are followed, and so many lengths along each.
_FOLLOWED = 4
_NUM_LENGTHS = 12
_SIDES = np.asarray([1.0, -1.0])


class Surroundings(NamedTuple):
    """What was found around a state; `step` leads away from it, along the line that decided, in flat coordinates.

    `sign`: of the smallest curvature, 0 where it is zero to rounding (or, found from products, has not converged).
    `is_finite`: whether slope and curvature are. `is_quadratic`: the model holds to both sides of every line.
    `is_enclosed`: the slope turns on both sides of every line. `falls`: on some side F falls ever steeper. `recedes`:
    on some side it falls ever less steep.
    """

    sign: int
    is_finite: bool
    is_quadratic: bool
    is_enclosed: bool
    falls: bool
    recedes: bool
    step: np.ndarray


class _Lines(NamedTuple):
    """Lines through the state: directions (rows), slopes and curvatures along them; the least curvature that is not
    lost in rounding, and the rounding of the state itself.
    """

    directions: Any
    slopes: Any
    curvatures: Any
    least: Any
    rounding: Any


def surroundings(energy: AbstractEnergy, state: State, first_value: float) -> Surroundings:
    """What the energy does around a state which a flow reached from where it was `first_value`."""
    flat = ravel_pytree(moving(state))[0]
    eps = float(jnp.finfo(flat.dtype).eps)
    sign, lines = 0, None
    if flat.size <= LARGEST_DENSE:
        value, gradient, hessian = (np.asarray(part, np.float64) for part in _compiled.call(_expanded, energy, state))
        if np.isfinite(gradient).all() and np.isfinite(hessian).all():
            with np.errstate(all="ignore"):
                sign, lines = _dense(np.asarray(flat, np.float64), gradient, hessian, eps, np)
    else:
        sign, value, parts = _compiled.call(_by_products, energy, state)
        lines = _Lines(*(np.asarray(part, np.float64) for part in parts))
    if lines is None or not all(np.isfinite(part).all() for part in lines):
        return Surroundings(0, False, False, False, False, False, np.zeros(flat.shape, flat.dtype))
    here = abs(float(value))
    lengths = _lengths(lines, max(here, eps * abs(float(first_value) - float(value))), eps, np)
    values, slopes = _compiled.call(
        _along, energy, state, lengths.astype(flat.dtype), lines.directions.astype(flat.dtype)
    )
    rises, outward = np.asarray(values, np.float64) - float(value), np.asarray(slopes, np.float64) * _SIDES[:, None]
    with np.errstate(all="ignore"):
        found = _verdict(int(sign), lines, lengths, rises, outward, 64 * eps * here)
    return found._replace(step=found.step.astype(flat.dtype))


def is_held(energy: AbstractEnergy, state: State, first_value: Scalar) -> tuple[Scalar, Flag]:
    """The sign of the smallest curvature, and whether F has a minimum there along every line: of `surroundings` what
    can be told while JAX traces.
    """
    flat = ravel_pytree(moving(state))[0]
    eps = float(jnp.finfo(flat.dtype).eps)
    if flat.size <= LARGEST_DENSE:
        value, gradient, hessian = _expanded(energy, state)
        sign, lines = _dense(flat, gradient, hessian, eps, jnp)
    else:
        sign, value, parts = _by_products(energy, state)
        lines = _Lines(*parts)
    reference = jnp.maximum(jnp.abs(value), eps * jnp.abs(first_value - value))
    lengths = _lengths(lines, reference, eps, jnp)
    _, slopes = _along(energy, state, lengths, lines.directions)
    quadratic, turns = _held(lines, lengths, slopes * np.asarray([[[1], [-1]]], lengths.dtype))
    return sign, jnp.all(turns) if flat.size == 1 else jnp.all(quadratic)


def _verdict(
    sign: int, lines: _Lines, lengths: np.ndarray, rises: np.ndarray, outward: np.ndarray, rounding: float
) -> Surroundings:
    """Axes: lines, sides, lengths."""
    inward = lines.slopes[:, None] * _SIDES
    steepness = np.abs(lines.slopes)[:, None, None]
    quadratic, enclosed = _held(lines, lengths, outward)
    # F falls, by no more than the slopes allow: else the fall is one of rounding errors.
    believable = -rises < 4 * lengths[:, None] * np.maximum(np.abs(outward), steepness)
    steeper = (rises < -rounding) & (outward < 0) & believable & (-outward > 1.5 * steepness)
    steeper = steeper & (np.cumsum(outward > 0, axis=-1) <= 1) & ~quadratic[:, None, None]
    downhill = np.all(outward <= 0, axis=-1) & (outward[..., 0] < 0) & (inward < 0)
    recedes = downhill & (np.abs(outward[..., -1]) <= np.abs(outward[..., 0]))

    if sign >= 0 and steeper.any():
        line, side, rung = np.unravel_index(np.argmin(np.where(steeper, rises, np.inf)), steeper.shape)
    elif sign >= 0 and recedes.any():
        line, side = np.unravel_index(np.argmax(recedes), recedes.shape)
        rung = 0
    else:
        # A saddle is left along the lowest curvature, which is the first line.
        line, side, rung = 0, 0, -1
    step = _SIDES[side] * lengths[line, rung] * lines.directions[line]
    return Surroundings(
        sign,
        True,
        bool(quadratic.all()),
        bool(enclosed.all()),
        bool(steeper.any()),
        bool(recedes.any()),
        step,
    )


def _lengths(lines: _Lines, reference: Any, eps: float, xp: Any) -> Any:
    """From four times the step that is left, to where F would change by a part in 10⁹ or so, as `(lines, lengths)`."""
    curvature = xp.maximum(xp.abs(lines.curvatures), lines.least)
    shortest = xp.maximum(4 * xp.abs(lines.slopes) / curvature, 8 * lines.rounding)
    visible = xp.sqrt(2 * eps**0.6 * reference / curvature)
    longest = xp.maximum(xp.maximum(16 * shortest, visible), 1e4 * lines.rounding)
    # Where neither F nor the state has a size, there is no scale to begin with.
    longest = xp.where(longest > 0, longest, eps**0.25)
    shortest = xp.where(shortest > 0, shortest, 1e-4 * longest)
    exponents = xp.linspace(0, 1, _NUM_LENGTHS, dtype=longest.dtype)
    return shortest[:, None] * (longest / shortest)[:, None] ** exponents[None]


def _held(lines: _Lines, lengths: Any, outward: Any) -> tuple[Any, Any]:
    """For each line, whether the model holds to both sides at one length, and for each side whether the slope turns."""
    inward = lines.slopes[:, None] * np.asarray([[1, -1]], lengths.dtype)
    promised = inward[..., None] + (lines.curvatures[:, None] * lengths)[:, None]
    holds = (outward > 0.5 * promised) & (outward < 2 * promised)
    # Two lengths in a row: a slope that turns once may be a rounding error.
    turns = (outward[..., 1:] > 0) & (outward[..., :-1] > 0)
    return (holds[:, 0] & holds[:, 1]).any(axis=-1), turns.any(axis=-1)


def _dense(flat: Any, gradient: Any, hessian: Any, eps: float, xp: Any) -> tuple[Any, _Lines]:
    """The sign of the smallest curvature and the lines, by NumPy or, while JAX traces, by JAX."""
    hessian = 0.5 * (hessian + hessian.T)
    root = equilibrating_root(hessian, xp)
    scaled = hessian / root[:, None] / root[None]
    finite = xp.isfinite(scaled).all()
    values, vectors = xp.linalg.eigh(xp.where(finite, scaled, 0))
    zero = negligible_curvature(flat.size, eps)
    newton = vectors @ (vectors.T @ (gradient / root) / xp.maximum(xp.abs(values), zero))
    size = xp.sqrt(xp.sum(newton**2))
    newton = xp.where(size > 0, newton / xp.where(size > 0, size, 1), vectors[:, 0])
    directions = xp.concatenate([vectors[:, :_FOLLOWED].T, newton[None]]) / root[None]
    curvatures = xp.where(finite, xp.sum(directions * (directions @ hessian), axis=1), xp.nan)
    sign = xp.where(xp.abs(values[0]) <= zero, 0, xp.sign(values[0]))
    rounding = eps * xp.sqrt(xp.sum((root * flat) ** 2))
    return sign, _Lines(directions, directions @ gradient, curvatures, zero, rounding)


def _flat_energy(energy: AbstractEnergy, state: State) -> tuple[Any, Array]:
    flat, unravel = ravel_pytree(moving(state))
    return (lambda z: jnp.asarray(energy(eqx.combine(unravel(z), state)), z.dtype)), flat


def _expanded(energy: AbstractEnergy, state: State) -> tuple[Scalar, Array, Array]:
    value, flat = _flat_energy(energy, state)

    def slope(z: Array) -> tuple[Array, tuple[Scalar, Array]]:
        here, gradient = jax.value_and_grad(value)(z)
        return gradient, (here, gradient)

    hessian, (here, gradient) = jax.jacfwd(slope, has_aux=True)(flat)
    return here, gradient, hessian


def _along(energy: AbstractEnergy, state: State, lengths: Array, directions: Array) -> tuple[Array, Array]:
    """Values and slopes (along the direction), with axes lines, sides, lengths."""
    value, flat = _flat_energy(energy, state)

    def beside(args: tuple[Array, Array]) -> tuple[Scalar, Scalar]:
        there, gradient = jax.value_and_grad(value)(flat + args[0] * args[1])
        return there, jnp.vdot(gradient, args[1])

    shape = (len(directions), 2, lengths.shape[1])
    both = jnp.stack([lengths, -lengths], axis=1).ravel()
    if flat.size <= LARGEST_DENSE:
        repeated = jnp.repeat(directions, 2 * lengths.shape[1], axis=0)
        values, slopes = jax.vmap(beside)((both, repeated))
    else:
        which = jnp.repeat(jnp.arange(len(directions)), 2 * lengths.shape[1])
        values, slopes = jax.lax.map(lambda pair: beside((pair[0], directions[pair[1]])), (both, which))
    return values.reshape(shape), slopes.reshape(shape)


def _by_products(energy: AbstractEnergy, state: State) -> tuple[Scalar, Scalar, tuple[Any, ...]]:
    value, flat = _flat_energy(energy, state)
    here, gradient = jax.value_and_grad(value)(flat)
    _, product = jax.linearize(jax.grad(value), flat)
    # Rows of size one, to the accuracy of a few images of vectors of random signs: signs do not depend on it.
    signs = jax.random.rademacher(jax.random.key(1), (4, flat.size), flat.dtype)
    root = jnp.mean(jax.lax.map(product, signs) ** 2, axis=0) ** 0.25
    root = jnp.where(root > 0, root, 1)
    lowest, largest, vector, sign = lowest_by_lanczos(lambda v: product(v / root) / root, flat)
    down = -gradient / root
    size = jnp.linalg.norm(down)
    down = jnp.where(size > 0, down / jnp.where(size > 0, size, 1), vector)
    directions = jnp.stack([vector / root, down / root])
    curvatures = jnp.stack([lowest, jnp.vdot(directions[1], product(directions[1]))])
    eps = jnp.finfo(flat.dtype).eps
    rounding = eps * jnp.linalg.norm(root * flat)
    return sign, here, tuple(_Lines(directions, directions @ gradient, curvatures, 1e3 * eps * largest, rounding))
