r"""Multigrid for symmetric elliptic finite-volume operators whose coefficients jump or vanish.

$$(Au)_i = d_i u_i + \sum_{\text{faces of } i} k_{ij}(u_i - u_j), \qquad d \ge 0,\ k \ge 0.$$

The coefficients are densities: they span twenty orders of magnitude, are zero in a vacuum and behind walls. So the
method looks at the conductances only, never at coordinates:

- pairs of cells along each axis are aggregated; a coarse face adds up the fine faces between two aggregates, over
  the distance of their centres, so each level has the form above and costs the same per cell;
- prolongation is constant on aggregates, then smoothed by half a Jacobi step along each axis: it is (bi-, tri-)linear
  where conductances are equal, and nothing is carried through a face that is closed; restriction is its transpose;
- the smoother is Chebyshev's polynomial of $\operatorname{diag}(A)^{-1}A$, whose spectrum lies in $[0, 2]$ whatever
  the coefficients (Gershgorin), so no eigenvalue is estimated, and the cycle is symmetric;
- at most 64 cells are solved by eigenvectors, with null directions left alone.

One V-cycle preconditions conjugate gradients. `docs/implicit.md` lists what else was tried.

**Source:** Braess, *Towards algebraic multigrid for elliptic problems of second order*, Computing 55 (1995), for the
over-correction of aggregates; Vaněk, Mandel, Brezina, *Algebraic multigrid by smoothed aggregation*, Computing 56
(1996).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Scalar

# Cells of the coarsest level, whose eigenvectors take a millisecond.
_SMALLEST = 64
# The smoother damps the part of the spectrum above 2/_RATIO: in two dimensions the upper three quarters are those that
# a grid of half the resolution cannot see.
_RATIO = 4.0
_DEGREE = 2


def _chebyshev() -> tuple[float, list[float], list[float]]:
    """The length of the first step, and the momentum and length of those that follow (Saad 2003, algorithm 12.1)."""
    centre, radius = 1 + 1 / _RATIO, 1 - 1 / _RATIO
    rho, momenta, lengths = radius / centre, [], []
    for _ in range(_DEGREE):
        following = 1 / (2 * centre / radius - rho)
        momenta.append(following * rho)
        lengths.append(2 * following / radius)
        rho = following
    return 1 / centre, momenta, lengths


_FIRST, _MOMENTA, _LENGTHS = _chebyshev()
_PRE = (_MOMENTA, _LENGTHS)
# After a step that is given, such as the correction of the coarse levels, the recursion begins anew.
_POST = ([0.0, *_MOMENTA[:-1]], [_FIRST, *_LENGTHS[:-1]])
# An axis whose cells are wider than this many times the narrowest is not coarsened before the others are as wide.
_ANISOTROPY = 1.5


class Elliptic(NamedTuple):
    """An operator: `diagonal` has one entry per cell, `faces` one array of the grid's shape per axis. Entry $i$ of a
    face array is between cells $i$ and $i + 1$; the last one wraps, and is zero where the axis is not periodic.
    """

    diagonal: Array
    faces: tuple[Array, ...]


class Transport(NamedTuple):
    r"""An operator that also carries: the flux through a face is `forward` · u(here) − `backward` · u(next), both
    coefficients non-negative. Its columns sum to `diagonal`; it is `Elliptic` where the two agree. The cycle then
    preconditions a method for unsymmetric equations.
    """

    diagonal: Array
    forward: tuple[Array, ...]
    backward: tuple[Array, ...]


class Level(NamedTuple):
    """An operator with the reciprocals that its smoother and its prolongation use, and the axes that are halved."""

    operator: Elliptic | Transport
    inverse_diagonal: Array
    weights: tuple[Array, ...]
    halved: tuple[int, ...]


class Hierarchy(NamedTuple):
    """All levels, and the pseudo-inverse of the coarsest."""

    levels: tuple[Level, ...]
    coarsest: Array


class Solution(NamedTuple):
    r"""`values`: $u$; `residual`: $\|b - Au\|/\|b\|$, computed anew at the end; `num_steps`: of conjugate gradients."""

    values: Array
    residual: Scalar
    num_steps: Count


def apply(operator: Elliptic | Transport, values: Array) -> Array:
    """$Au$."""
    result = operator.diagonal * values
    for axis in range(values.ndim):
        result = result + _along(operator, values, axis)
    return result


def main_diagonal(operator: Elliptic | Transport) -> Array:
    """The entries of A on its diagonal."""
    result = operator.diagonal
    forward, backward = _coefficients(operator)
    for axis in range(result.ndim):
        if result.shape[axis] > 1:  # the wrapping face of a single cell joins it to itself
            result = result + forward[axis] + jnp.roll(backward[axis], 1, axis)
    return result


def _coefficients(operator: Elliptic | Transport) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    if isinstance(operator, Elliptic):
        return operator.faces, operator.faces
    return operator.forward, operator.backward


def _conductance(operator: Elliptic | Transport, axis: int) -> Array:
    """What diffuses through a face: the part of the coefficients that is the same both ways."""
    if isinstance(operator, Elliptic):
        return operator.faces[axis]
    return jnp.minimum(operator.forward[axis], operator.backward[axis])


def hierarchy(operator: Elliptic | Transport, widths: tuple[float, ...] | None = None) -> Hierarchy:
    """The coarse levels of an operator.

    **Arguments:** `widths`: the widths of the cells along each axis where they differ; an axis of wide cells waits
    until the others are as wide. Cells of no conductance and no diagonal (masked ones) are left alone.
    """
    shape = operator.diagonal.shape
    widths = (1.0,) * len(shape) if widths is None else tuple(float(w) for w in widths)
    levels: list[Level] = []
    while math.prod(operator.diagonal.shape) > _SMALLEST:
        shape = operator.diagonal.shape
        narrowest = min(w for w, n in zip(widths, shape, strict=True) if n > 1)
        halved = tuple(a for a, n in enumerate(shape) if n > 1 and widths[a] <= _ANISOTROPY * narrowest)
        conductances = [_conductance(operator, axis) for axis in halved]
        weights = tuple(
            0.5 * _reciprocal(k + jnp.roll(k, 1, axis)) for k, axis in zip(conductances, halved, strict=True)
        )
        levels.append(Level(operator, _reciprocal(main_diagonal(operator)), weights, halved))
        for axis in halved:
            operator = _halve(operator, axis)
        widths = tuple(w * (2 if axis in halved else 1) for axis, w in enumerate(widths))
    return Hierarchy(tuple(levels), _pseudo_inverse(operator))


def v_cycle(multigrid: Hierarchy, right: Array) -> Array:
    """One V-cycle from zero: about $A^{-1}b$, by a symmetric positive semidefinite map."""
    return _cycle(multigrid, 0, right)


def in_single_precision(multigrid: Hierarchy) -> Callable[[Array], Array]:
    """The V-cycle in numbers of half the length, for methods that forgive a preconditioner its rounding: half as long.
    The operator and what is solved for are scaled to one, so that nothing that matters is too small.
    """
    size = jnp.max(jnp.abs(multigrid.levels[0].operator.diagonal))
    for faces in _coefficients(multigrid.levels[0].operator)[0]:
        size = jnp.maximum(size, jnp.max(faces))
    scale = _reciprocal(size)
    short = lambda array, factor: (array * factor).astype(jnp.float32)  # noqa: E731
    levels = tuple(
        Level(
            jax.tree.map(lambda a: short(a, scale), level.operator),
            short(level.inverse_diagonal, size),
            tuple(short(w, size) for w in level.weights),
            level.halved,
        )
        for level in multigrid.levels
    )
    shortened = Hierarchy(levels, short(multigrid.coarsest, size))

    def cycle(right: Array) -> Array:
        largest = jnp.max(jnp.abs(right))
        return v_cycle(shortened, short(right, _reciprocal(largest))).astype(right.dtype) * (largest * scale)

    return cycle


def solve(
    operator: Elliptic,
    right: Array,
    guess: Array | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 60,
    multigrid: Hierarchy | None = None,
) -> Solution:
    r"""Solve $Au = b$ by conjugate gradients with a V-cycle, until $\|b - Au\| \le$ `tolerance` $\|b\|$.

    Where `diagonal` is zero everywhere, constants are not seen by A: they are taken out of $b$, and $u$ keeps the mean
    of the guess. (If the open cells fall into several parts, $b$ must sum to zero on each.) Cells of no conductance and
    no diagonal keep the guess. Differentiable by the operator and by $b$, implicitly; not by the guess.

    **Arguments:** `multigrid`: the hierarchy of this operator, or of one near it, if it is known already.
    """
    guess = jnp.zeros_like(right) if guess is None else jax.lax.stop_gradient(guess)
    frozen = jax.lax.stop_gradient(operator)
    levels = hierarchy(frozen) if multigrid is None else jax.lax.stop_gradient(multigrid)
    main = main_diagonal(frozen)
    active = main > 0
    singular = ~jnp.any(frozen.diagonal > 0)

    def without_constants(vector: Array) -> Array:
        vector = jnp.where(active, vector, 0)
        mean = jnp.sum(vector) / jnp.maximum(jnp.sum(active), 1).astype(vector.dtype)
        return jnp.where(singular & active, vector - mean, vector)

    def precondition(vector: Array) -> Array:
        return without_constants(v_cycle(levels, vector))

    # The size of b goes along, so that a good guess saves steps; its derivative is zero, so that a derivative is solved
    # to the tolerance of its own size.
    def linear(_: object, given: tuple[Array, Scalar]) -> tuple[tuple[Array, Scalar], Count]:
        start, size = without_constants(given[0]), given[1]
        goal = tolerance * jnp.maximum(jnp.abs(size), _norm(start))
        found, steps = conjugate_gradients(lambda x: apply(frozen, x), precondition, start, goal, max_steps)
        return (found, size), steps

    right = without_constants(right)
    start = right - apply(operator, guess)
    size = jax.lax.stop_gradient(_norm(right)) + 0 * jnp.sum(start)  # the transpose wants all of b to be linear
    (correction, _), steps = jax.lax.custom_linear_solve(
        lambda x: (apply(operator, x[0]), x[1]), (start, size), linear, symmetric=True, has_aux=True
    )
    values = guess + correction
    size = jax.lax.stop_gradient(size)
    left = _norm(without_constants(right - apply(frozen, jax.lax.stop_gradient(values))))
    return Solution(values, left / jnp.where(size > 0, size, 1), steps)


class _Carry(NamedTuple):
    values: Array
    left: Array
    direction: Array
    weight: Scalar
    count: Count


def conjugate_gradients(
    product: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    right: Array,
    goal: Scalar,
    max_steps: int,
) -> tuple[Array, Count]:
    """From zero until the residual is at most `goal`: the solution and the number of steps."""

    def unfinished(c: _Carry) -> Array:
        # A product that is not positive is rounding, or NaN: no progress is left.
        return (_norm(c.left) > goal) & (c.weight > 0) & (c.count < max_steps)

    def body(c: _Carry) -> _Carry:
        image = product(c.direction)
        along = jnp.vdot(c.direction, image)
        size = jnp.where(along > 0, c.weight / jnp.where(along > 0, along, 1), 0)
        left = c.left - size * image
        better = precondition(left)
        # Polak and Ribière's form forgives a preconditioner that rounding has made a little unsymmetric.
        weight = jnp.vdot(left, better)
        turn = (weight - jnp.vdot(c.left, better)) / c.weight
        weight = jnp.where(along > 0, weight, 0)
        return _Carry(c.values + size * c.direction, left, better + turn * c.direction, weight, c.count + 1)

    first = precondition(right)
    begin = _Carry(jnp.zeros_like(right), right, first, jnp.vdot(right, first), jnp.asarray(0))
    end = jax.lax.while_loop(unfinished, body, begin)
    return end.values, end.count


def _cycle(multigrid: Hierarchy, number: int, right: Array) -> Array:
    if number == len(multigrid.levels):
        return (multigrid.coarsest @ right.reshape(-1)).reshape(right.shape)
    level = multigrid.levels[number]
    values, left, _ = _smooth(level, jnp.zeros_like(right), right, _FIRST * level.inverse_diagonal * right, _PRE)
    correction = _prolong(level, _cycle(multigrid, number + 1, _restrict(level, left)))
    values, _, last = _smooth(level, values, left, correction, _POST)
    return values + last


def _smooth(
    level: Level, values: Array, left: Array, step: Array, recursion: tuple[list[float], list[float]]
) -> tuple[Array, Array, Array]:
    """Take a step, then Chebyshev's: the value, its residual, and the step that would follow.

    As a loop over what it carries: unrolled, XLA's compiler for CPUs fuses one application of the operator into the
    next and computes each neighbour's neighbours anew, forty times the work in three dimensions.
    """

    momenta, lengths = (jnp.asarray(numbers, step.dtype) for numbers in recursion)

    def body(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        values, left, step = carry
        left = left - apply(level.operator, step)
        step = momenta[number] * step + lengths[number] * (level.inverse_diagonal * left)
        return values + carry[2], left, step

    return jax.lax.fori_loop(0, _DEGREE, body, (values, left, step))


def _prolong(level: Level, coarse: Array) -> Array:
    shape = level.operator.diagonal.shape
    values = coarse
    for axis in level.halved:
        values = jax.lax.slice_in_dim(jnp.repeat(values, 2, axis=axis), 0, shape[axis], axis=axis)
    smoothed = values
    for axis, weight in zip(level.halved, level.weights, strict=True):
        smoothed = smoothed - weight * _diffused(level.operator, values, axis)
    return smoothed


def _restrict(level: Level, fine: Array) -> Array:
    smoothed = fine
    for axis, weight in zip(level.halved, level.weights, strict=True):
        smoothed = smoothed - _diffused(level.operator, weight * fine, axis)
    for axis in level.halved:
        smoothed = _pair_sums(smoothed, axis)
    return smoothed


def _halve(operator: Elliptic | Transport, axis: int) -> Elliptic | Transport:
    """Pairs of cells along one axis as one cell."""
    diagonal = _pair_sums(operator.diagonal, axis)
    sums = lambda faces, a: _outer_faces(faces, axis) if a == axis else _pair_sums(faces, axis)  # noqa: E731
    # Constants on aggregates make the coarse operator too stiff by the distance of the centres, in cells; what is
    # carried one way is not a matter of distance.
    if isinstance(operator, Elliptic):
        faces = [sums(faces, a) for a, faces in enumerate(operator.faces)]
        faces[axis] = faces[axis] / _distances(operator.diagonal, axis)
        return Elliptic(diagonal, tuple(faces))
    forward = [sums(faces, a) for a, faces in enumerate(operator.forward)]
    backward = [sums(faces, a) for a, faces in enumerate(operator.backward)]
    both = jnp.minimum(forward[axis], backward[axis])
    excess = both - both / _distances(operator.diagonal, axis)
    forward[axis], backward[axis] = forward[axis] - excess, backward[axis] - excess
    return Transport(diagonal, tuple(forward), tuple(backward))


def _outer_faces(faces: Array, axis: int) -> Array:
    n = faces.shape[axis]
    outer = jax.lax.slice_in_dim(faces, 1, n, 2, axis)
    if n % 2:
        outer = jnp.concatenate([outer, jax.lax.slice_in_dim(faces, n - 1, n, axis=axis)], axis)
    return outer


def _distances(fine: Array, axis: int) -> Array:
    """Of the centres of neighbouring pairs, in cells; an odd last cell is alone."""
    n = fine.shape[axis]
    sizes = [2.0] * (n // 2) + [1.0] * (n % 2)
    distances = [0.5 * (sizes[i] + sizes[(i + 1) % len(sizes)]) for i in range(len(sizes))]
    return jnp.asarray(distances, fine.dtype).reshape(tuple(-1 if a == axis else 1 for a in range(fine.ndim)))


def _pair_sums(values: Array, axis: int) -> Array:
    shape = values.shape
    if shape[axis] % 2:
        values = jnp.pad(values, [(0, 1) if a == axis else (0, 0) for a in range(values.ndim)])
    return jnp.sum(values.reshape(*shape[:axis], -1, 2, *shape[axis + 1 :]), axis=axis + 1)


def _along(operator: Elliptic | Transport, values: Array, axis: int) -> Array:
    if isinstance(operator, Elliptic):
        return _diffused(operator, values, axis)
    flux = operator.forward[axis] * values - operator.backward[axis] * jnp.roll(values, -1, axis)
    return flux - jnp.roll(flux, 1, axis)


def _diffused(operator: Elliptic | Transport, values: Array, axis: int) -> Array:
    flux = _conductance(operator, axis) * (values - jnp.roll(values, -1, axis))
    return flux - jnp.roll(flux, 1, axis)


def _pseudo_inverse(operator: Elliptic | Transport) -> Array:
    shape, dtype = operator.diagonal.shape, operator.diagonal.dtype
    size = math.prod(shape)
    columns = jax.vmap(lambda unit: apply(operator, unit.reshape(shape)).reshape(-1))(jnp.eye(size, dtype=dtype)).T
    # Scaled to a unit diagonal, so that a nearly empty part keeps its digits beside a heavy one.
    main = main_diagonal(operator).reshape(-1)
    scale = jnp.sqrt(_reciprocal(main))
    scaled = scale[:, None] * columns * scale[None, :]
    if isinstance(operator, Transport):
        # A closed cell has a zero row. A carrying operator is invertible beside it, thanks to its diagonal.
        return (
            scale[:, None]
            * jnp.linalg.inv(scaled + jnp.diag(jnp.where(scale > 0, 0, 1).astype(dtype)))
            * scale[None, :]
        )
    eigenvalues, vectors = jnp.linalg.eigh(scaled)
    seen = eigenvalues > 4 * size * jnp.finfo(dtype).eps * jnp.maximum(eigenvalues[-1], 0)
    inverse = jnp.where(seen, 1 / jnp.where(seen, eigenvalues, 1), 0)
    vectors = scale[:, None] * vectors
    return (vectors * inverse[None, :]) @ vectors.T


def _reciprocal(values: Array) -> Array:
    # Below this a reciprocal overflows; such a cell is as good as closed.
    some = values > 4 * jnp.finfo(values.dtype).tiny
    return jnp.where(some, 1 / jnp.where(some, values, 1), 0)


def _norm(values: Array) -> Scalar:
    return jnp.sqrt(jnp.sum(values**2))
