r"""Proximable energies with one linear constraint: hyperplane, simplex, and any separable energy on a hyperplane.

With a separable g and $\sum_i a_i y_i = b$ the proximal map is that of g alone, moved along the normal:
$y_i(\tau) = \operatorname{prox}_{g_i}(x_i - \tau a_i/d_i)$, and what is left is one number, the multiplier $\tau$, at
which $h(\tau) = \sum_i a_i y_i(\tau) - b = 0$. h never rises and is made of straight pieces, so Newton's method is
exact once it stands on the right piece; a bracket keeps it from running in circles.

**Source:** Held, Wolfe, Crowder, *Validation of subgradient optimization* (1974) for the simplex; Cominetti,
Mascarenhas, Silva, *A Newton's method for the continuous quadratic knapsack problem* (2014).
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._sums import folded, sums
from thalweg._types import Array, Flag, PyTree, Scalar, ScalarLike, State
from thalweg.energies._parameters import check_positive, check_spread, known, metric_like, numbers, spread, vector
from thalweg.energies._proximable import AbstractProximable, AbstractSeparable, NonNegative, Separable

# Newton needs a handful; so many halvings bring a bracket to neighbouring numbers.
_MOST = 120


class Hyperplane(AbstractProximable):
    r"""One linear constraint $\sum_i a_i x_i = b$: 0 there, $+\infty$ elsewhere.

    It adds to entry-wise energies: `tw.Box(0, 1) + tw.Hyperplane(0.0, labels)` is the feasible set of a support vector
    machine's dual, `tw.Box(0, 0.1) + tw.Hyperplane(1.0)` that of a portfolio with at most a tenth in each share.

    **Arguments:** `offset`: b; `normal`: $a \ne 0$, a number (1: the entries sum to b), an array that broadcasts to the
    state, or a tree like the state.
    """

    offset: Array = eqx.field(default=0.0, converter=lambda offset: numbers(offset))
    normal: PyTree = eqx.field(default=1.0, converter=lambda normal: numbers(normal))

    def __check_init__(self) -> None:
        if known(self.offset, self.normal):
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((self.offset, self.normal))]
            if not all(np.all(np.isfinite(leaf)) for leaf in leaves) or not any(np.any(leaf) for leaf in leaves[1:]):
                raise ValueError("`Hyperplane` needs a finite `offset` and a finite `normal` that is not zero.")

    def __call__(self, state: State) -> Scalar:
        point = vector(self, state)
        products = jax.tree.map(lambda a, x: a * x, spread(self.normal, point), point)
        flat = ravel_pytree(products)[0]
        return jnp.where(_holds(flat, self.offset), jnp.zeros((), flat.dtype), jnp.inf)

    def inside(self, point: State) -> Scalar:
        return jnp.zeros((), _tree.dtype_of(point))

    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        normal = spread(self.normal, point)
        across = jax.tree.map(lambda a, d: a / d, normal, metric_like(metric_diagonal, point))
        beyond = _tree.dot(normal, point)
        away = (beyond - self.offset.astype(beyond.dtype)) / _tree.dot(normal, across)
        return _tree.multiply_add(point, -away, across)

    def least_subgradient(self, point: State, gradient: State) -> State:
        normal = spread(self.normal, point)
        return _tree.multiply_add(gradient, -_tree.dot(normal, gradient) / _tree.dot(normal, normal), normal)

    def scaled(self, factor: ScalarLike) -> "Hyperplane":
        return self

    def check(self, state: State) -> None:
        check_spread(vector(self, state), self.normal)


class OnHyperplane(AbstractProximable):
    r"""A separable energy g on the hyperplane $\sum_i a_i x_i = b$. Made by adding the two.

    **Arguments:** `separable`: g; `offset`: b; `normal`: a, as for [`thalweg.Hyperplane`][]; `axis`: `None` for all
    entries of the state put end to end, or the axis of each leaf along which every slice satisfies the constraint;
    `never_a_vertex`: whether some entry is always free.
    """

    separable: AbstractSeparable
    offset: Array
    normal: PyTree
    axis: int | None = eqx.field(static=True, default=None)
    never_a_vertex: bool = eqx.field(static=True, default=False)

    def __call__(self, state: State) -> Scalar:
        point = vector(self, state)
        value = self.separable(point)
        products = jax.tree.map(lambda a, x: a * x, spread(self.normal, point), point)
        hold = _holds if self.axis is None else jax.vmap(_holds, (0, None))
        holds = [jnp.all(hold(rows, self.offset)) for (rows,) in self._rows(point, products)[0]]
        return jnp.where(jnp.all(jnp.stack(holds)), value, jnp.inf)

    def inside(self, point: State) -> Scalar:
        return self.separable.inside(point)

    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        return self._solved(point, step, metric_like(metric_diagonal, point), self.separable.parts().at(point))

    def least_subgradient(self, point: State, gradient: State) -> State:
        # The velocity is the nearest to −ξ among the directions that stay: again a separable energy, the slope of g
        # along a direction, on a hyperplane.
        direct = jax.tree.map(_directions, point, gradient, *self.separable.parts().at(point))
        slopes, *parts = (jax.tree.map(lambda _, d, i=i: d[i], point, direct) for i in range(5))
        start = _tree.scale_by(slopes, -1.0)
        homogeneous = OnHyperplane(self.separable, jnp.zeros_like(self.offset), self.normal, self.axis)
        ones = jax.tree.map(jnp.ones_like, point)
        return _tree.scale_by(homogeneous._solved(start, 1.0, ones, tuple(parts)), -1.0)

    def scaled(self, factor: ScalarLike) -> "OnHyperplane":
        return eqx.tree_at(lambda s: s.separable, self, self.separable.scaled(factor))

    def check(self, state: State) -> None:
        point = vector(self, state)
        if self.axis is not None and any(not -leaf.ndim <= self.axis < leaf.ndim for leaf in jax.tree.leaves(point)):
            shapes = [leaf.shape for leaf in jax.tree.leaves(point)]
            raise ValueError(f"`Simplex` with axis={self.axis} does not fit a state of shapes {shapes}.")
        check_spread(point, self.normal)
        self.separable.check(state)
        self._check_not_empty(point)

    def _check_not_empty(self, point: State) -> None:
        """Raise `ValueError` if no point between the bounds lies on the hyperplane."""
        _, _, lower, upper = self.separable.parts().at(point)
        normal = spread(self.normal, point)
        if not known(lower, upper, normal, self.offset):
            return
        offset = float(self.offset)
        for a, below, above in self._rows(point, normal, lower, upper)[0]:
            normal = np.asarray(a)
            ends = np.stack([np.asarray(below), np.asarray(above)])
            ends = np.where(normal == 0, 0, normal) * np.where(normal == 0, 0, ends)
            least, most = np.sum(ends.min(axis=0), axis=-1), np.sum(ends.max(axis=0), axis=-1)
            slack = 64 * np.finfo(ends.dtype).eps * np.sum(np.abs(ends), axis=(0, -1), where=np.isfinite(ends))
            if not np.all((least - slack <= offset) & (offset <= most + slack)):
                raise ValueError(
                    f"No point satisfies both: between the bounds the sum of the linear constraint lies in "
                    f"[{least.min():.6g}, {most.max():.6g}], and it is to be {offset:.6g}.\n"
                    "Widen the bounds or change the offset (`total` of `Simplex`)."
                )

    def _solved(self, point: State, step: ScalarLike, metric: PyTree, parts: tuple[PyTree, ...]) -> State:
        trees = (metric, spread(self.normal, point), *parts)
        rows, back = self._rows(point, point, *trees)
        flat = self.separable.parts().is_flat

        def solve(x: Array, metric: Array, normal: Array, *parts: Array) -> Array:
            offset, here = self.offset.astype(x.dtype), Separable(*parts)
            found = _balanced(x, metric, normal, here, offset, jnp.asarray(step, x.dtype), self.never_a_vertex)
            return found if flat else _put_right(found, normal / metric, normal, here, offset)

        solve = solve if self.axis is None else jax.vmap(solve)
        return back([solve(*each) for each in rows])

    def _rows(self, point: State, *trees: PyTree) -> tuple[list[tuple[Array, ...]], Callable[[list[Array]], Any]]:
        """The trees as matrices, one for each leaf, whose rows satisfy the constraint each (without an axis: as one
        vector in all), and the way back from such arrays.
        """
        if self.axis is None:
            flat, unravel = ravel_pytree(point)
            return [tuple(ravel_pytree(tree)[0] for tree in trees)], lambda rows: unravel(rows[0])
        axis, (leaves, structure) = self.axis, jax.tree.flatten(point)
        moved = [jnp.moveaxis(leaf, axis, -1).shape for leaf in leaves]

        def back(rows: list[Array]) -> Any:
            out = [jnp.moveaxis(row.reshape(shape), -1, axis) for row, shape in zip(rows, moved, strict=True)]
            return jax.tree.unflatten(structure, out)

        def matrix(leaf: Array) -> Array:
            leaf = jnp.moveaxis(leaf, axis, -1)
            return leaf.reshape(-1, leaf.shape[-1])

        return [tuple(map(matrix, each)) for each in zip(*map(jax.tree.leaves, trees), strict=True)], back


class Simplex(AbstractProximable):
    r"""$x \ge 0$, $\sum_i x_i = t$: 0 inside, $+\infty$ outside; its proximal map is the projection, found exactly by
    Newton's method for the multiplier. It adds to entry-wise energies, such as an upper bound.

    **Arguments:** `total`: $t > 0$; `axis`: `None` for all entries of the state put end to end, or the axis of each
    leaf along which every slice lies in a simplex (−1: the rows of a stochastic matrix).

    **Source:** Held, Wolfe, Crowder (1974); Duchi et al., *Efficient projections onto the ℓ1-ball* (ICML 2008).
    """

    total: Array = eqx.field(default=1.0, converter=lambda total: numbers(total))
    axis: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_positive(self.total, "total", "Simplex")

    def on_hyperplane(self, separable: AbstractSeparable) -> OnHyperplane:
        """Together with a separable energy that holds the bound $x \\ge 0$."""
        # The entries sum to something positive; with no other bounds those that are positive are free.
        return OnHyperplane(separable, self.total, jnp.ones(()), self.axis, isinstance(separable, NonNegative))

    def __call__(self, state: State) -> Scalar:
        return self.on_hyperplane(NonNegative())(vector(self, state))

    def inside(self, point: State) -> Scalar:
        return jnp.zeros((), _tree.dtype_of(point))

    def prox(self, point: State, step: ScalarLike, metric_diagonal: PyTree = None) -> State:
        return self.on_hyperplane(NonNegative()).prox(point, step, metric_diagonal)

    def least_subgradient(self, point: State, gradient: State) -> State:
        return self.on_hyperplane(NonNegative()).least_subgradient(point, gradient)

    def scaled(self, factor: ScalarLike) -> "Simplex":
        return self

    def check(self, state: State) -> None:
        self.on_hyperplane(NonNegative()).check(state)


def _holds(products: Array, offset: Array) -> Flag:
    """Whether the products sum to the offset, to rounding."""
    offset = offset.astype(products.dtype)
    total, size = sums(products, jnp.abs(products))
    slack = 64 * products.size**0.5 * jnp.finfo(products.dtype).eps * (size + jnp.abs(offset))
    return jnp.abs(total - offset) <= slack


def _directions(x: Array, slope: Array, weight: Array, ridge: Array, lower: Array, upper: Array) -> tuple[Array, ...]:
    """The slope of $\\xi x + g$ along a direction v from x, as $c v + w|v|$ with bounds: c, and the four parts."""
    smooth = slope + ridge * x + weight * jnp.sign(x)
    corner = jnp.where(x == 0, weight, 0)
    down = jnp.where(x <= lower, 0, -jnp.inf).astype(x.dtype)
    up = jnp.where(x >= upper, 0, jnp.inf).astype(x.dtype)
    return smooth, corner, jnp.zeros_like(x), down, up


@functools.partial(jax.custom_jvp, nondiff_argnums=(6,))
def _balanced(
    x: Array, metric: Array, normal: Array, parts: Separable, offset: Scalar, step: Scalar, never_a_vertex: bool
) -> Array:
    """The proximal map of a separable energy on a hyperplane, for one vector. `never_a_vertex`: at every point some
    entry is free.
    """
    shifted, _ = _shifted(x, metric, normal, parts, offset, step)
    return parts.prox(shifted, step / metric)


@functools.partial(_balanced.defjvp, symbolic_zeros=True)
def _(never_a_vertex: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    x, metric, normal, parts, offset, step = primals
    shifted, multiplier = _shifted(*primals)
    if not never_a_vertex:
        inwards = _inwards(shifted, normal, normal / metric, step / metric, parts)
        shifted, multiplier = shifted - inwards * normal / metric, multiplier + inwards
    point, share = parts.prox(shifted, step / metric), parts.slope(shifted, step / metric)
    across = share * normal / metric
    bend = jnp.sum(normal * across)
    leaves, structure = jax.tree.flatten(primals)
    changes = jax.tree.leaves(tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
    moving = [i for i, change in enumerate(changes) if not isinstance(change, SymbolicZero)]

    def held(*moved: Array) -> tuple[Array, Scalar]:
        """The point with the multiplier held, and by how much it misses the constraint."""
        everything = [*leaves]
        for i, leaf in zip(moving, moved, strict=True):
            everything[i] = leaf
        x, metric, normal, parts, offset, step = jax.tree.unflatten(structure, everything)
        there = parts.prox(x - multiplier * normal / metric, step / metric)
        return there, jnp.sum(normal * there) - offset

    _, (change, missed) = jax.jvp(held, tuple(leaves[i] for i in moving), tuple(changes[i] for i in moving))
    return point, change - across * (missed / jnp.where(bend > 0, bend, 1))


def _ways(shifted: Array, across: Array, corners: Array) -> Array:
    """How far the multiplier is from where each entry meets each of its corners."""
    return (shifted[None] - corners) / jnp.where(across == 0, 1, across)[None]


def _inwards(shifted: Array, normal: Array, across: Array, steps: Array, parts: Separable) -> Scalar:
    """Where all entries are held, the multiplier is one of an interval: the way from its end, where an entry that is
    held looks free, to its middle. Else zero.
    """
    corners = parts.corners(steps)
    ways = jnp.where(jnp.isfinite(corners) & (across != 0)[None], _ways(shifted, across, corners), jnp.inf)
    sizes = jnp.where(jnp.isfinite(corners), jnp.abs(shifted)[None] + jnp.abs(corners), 0)
    rounding = 64 * jnp.finfo(shifted.dtype).eps * sizes / jnp.where(across == 0, 1, jnp.abs(across))[None]
    near = jnp.any(jnp.abs(ways) <= rounding, axis=0)
    ahead = jnp.min(jnp.where(ways > rounding, ways, jnp.inf), axis=0)
    behind = jnp.min(jnp.where(ways < -rounding, -ways, jnp.inf), axis=0)
    pull = normal * across
    free, ahead, behind = folded([jnp.where(near, 0, pull * parts.slope(shifted, steps))], [], [ahead, behind])
    # A corner of an entry that is passed frees it, so half of the way to the next one is inside.
    right, left = (jnp.where(jnp.isfinite(way), 0.5 * way, 1) for way in (ahead, behind))
    pulls = folded([pull * parts.slope(shifted - way * across, steps) for way in (right, -left)])
    inside = jnp.where(pulls[0] == 0, right, jnp.where(pulls[1] == 0, -left, 0))
    return jnp.where(free == 0, inside, 0)


def _put_right(y: Array, across: Array, normal: Array, parts: Separable, offset: Scalar) -> Array:
    """The constraint to rounding, where large weights were subtracted from the entries that are free."""
    free = (parts.lower < y) & (y < parts.upper) & ((y != 0) | (parts.weight == 0))
    way = jnp.where(free, across, 0)
    total, bend = sums(normal * y, normal * way)
    rest = jnp.where(bend > 0, (total - offset) / jnp.where(bend > 0, bend, 1), 0)
    return jnp.clip(y - jax.lax.stop_gradient(rest * way), parts.lower, parts.upper)


def _shifted(
    x: Array, metric: Array, normal: Array, parts: Separable, offset: Scalar, step: Scalar
) -> tuple[Array, Scalar]:
    """x − τ a/d and τ, at which the entry-wise proximal map satisfies the constraint."""
    fixed = functools.partial(jax.tree.map, jax.lax.stop_gradient)
    x, metric, normal, parts, offset, step = fixed((x, metric, normal, parts, offset, step))
    across, steps = normal / metric, step / metric
    noise = (4 + x.size**0.5) * jnp.finfo(x.dtype).eps
    corners = parts.corners(steps)
    met = jnp.isfinite(corners) & (across != 0)[None]

    def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # τ, its bracket counted from it, |h| one step before, and the count: one array, for it compiles as one thing.
        shifted, (multiplier, low, high, before, count) = carry
        point, share = parts.prox(shifted, steps), parts.slope(shifted, steps)
        ends = _ways(shifted, across, corners)
        products = normal * point
        total, size, bend, last, first = folded(
            [products, jnp.abs(products), normal * across * share],
            [jnp.max(jnp.where(met, ends, 0), axis=0)],
            [jnp.min(jnp.where(met, ends, 0), axis=0)],
        )
        gap = total - offset
        low, high = jnp.where(gap > 0, 0, low), jnp.where(gap > 0, high, 0)
        bracketed = (low > -jnp.inf) & (high < jnp.inf)
        newton = gap / jnp.where(bend > 0, bend, 1)
        # The bracket is known to the rounding of the way that the multiplier has come.
        slip = 16 * jnp.finfo(x.dtype).eps * jnp.abs(multiplier)
        slow = bracketed & (jnp.abs(gap) > 0.5 * before) & (high - low > slip)
        good = (bend > 0) & (low - slip < newton) & (newton < high + slip) & ~slow
        # Where all entries stand still, beyond the last corner on that side.
        away = jnp.where(bracketed, 0.5 * (low + high), jnp.where(gap > 0, last, first))
        change = jnp.where(good, newton, away)
        done = (jnp.abs(gap) <= noise * (size + jnp.abs(offset))) | (change == 0)
        change = jnp.where(done, 0, change)
        count = jnp.where(done, _MOST, count + 1)
        # Small steps at the end, from numbers of the size of the result, make the sum right to the last bit.
        numbers = jnp.stack([multiplier + change, low - change, high - change, jnp.abs(gap), count])
        return shifted - change * across, numbers

    start = jnp.asarray([0.0, -jnp.inf, jnp.inf, jnp.inf, 0.0], x.dtype)
    shifted, numbers = jax.lax.while_loop(lambda carry: carry[1][4] < _MOST, body, (x, start))
    return shifted, numbers[0]
