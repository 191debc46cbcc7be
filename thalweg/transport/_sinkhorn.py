r"""The entropic transport between particles, where they are too many for an exact one, with a bracket on its bias.

$$\min_\gamma \int |x - y|^2\,\mathrm d\gamma + \varepsilon\,\mathrm{KL}(\gamma\,\|\,a \otimes b)$$

Sinkhorn's potentials solve it approximately. What they prove about $W_2$ itself is made rigorous on both sides: the
c-transform of one of them makes a feasible pair (a lower bound), and the plan scaled to the marginals exactly is a
coupling (an upper bound). Rows are visited in tiles; no table of all pairs is held.

**Source:** the rounding: Altschuler, Weed, Rigollet, *Near-linear time approximation algorithms for optimal transport
via Sinkhorn iteration* (2017), algorithm 2.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Flag, Scalar
from thalweg.states import Particles
from thalweg.states._base import is_concrete
from thalweg.transport._distance import AbstractCoupling, Certificate, Transport, envelope

# Rows that are held at once.
_TILE = 256
# How much epsilon comes down in a step on the way to its value.
_COOLING = 0.7


class EntropicCoupling(AbstractCoupling):
    r"""A coupling of all with all, by rows on demand: $\gamma_{ij} = \sum_k u^k_i e^{-|x_i - y_j|^2/\varepsilon_k}
    w^k_j + r_i s_j$, layers of growing $\varepsilon_k$ of which each carries what the one before has left.

    `log_left` and `log_right` are $\log u^k$ and $\log w^k$, shapes `(num_layers, num_points)`; the last term, of the
    size of what the last layer has left, makes the marginals exact. Along an axis with a period the way is the shorter
    one.
    """

    sources: Array
    images: Array
    log_left: Array
    log_right: Array
    rest: tuple[Array, Array]
    epsilons: tuple[float, ...] = eqx.field(static=True)
    periods: tuple[float | None, ...] = eqx.field(static=True)

    def _ways(self, index: Array) -> Array:
        """From one source to all images."""
        ways = self.images - self.sources[index][None]
        for axis, period in enumerate(self.periods):
            if period is not None:
                ways = ways.at[:, axis].add(-period * jnp.round(ways[:, axis] / period))
        return ways

    def row(self, index: Array) -> Array:
        """$\\gamma_{i\\cdot}$, the masses that go from one particle to all, shape `(num_images,)`."""
        lengths = jnp.sum(self._ways(index) ** 2, axis=1)
        plan = self.rest[0][index] * self.rest[1]
        for k, epsilon in enumerate(self.epsilons):
            plan = plan + jnp.exp(self.log_left[k, index] + self.log_right[k] - lengths / epsilon)
        return plan

    @property
    def transposed(self) -> "EntropicCoupling":
        """The same coupling, from the ends to the starts."""
        rest = (self.rest[1], self.rest[0])
        swapped = (self.images, self.sources, self.log_right, self.log_left)
        return EntropicCoupling(*swapped, rest, self.epsilons, self.periods)

    def over_rows(self, function: Callable[[Array, Array], Any]) -> Any:
        """`function(i, row)` for every row, in tiles."""
        return jax.lax.map(lambda i: function(i, self.row(i)), jnp.arange(self.sources.shape[0]), batch_size=_TILE)

    def expect(self, function: Callable[..., Any]) -> Scalar:
        r"""$\int f(x, y)\,\mathrm d\gamma$ for a function of two points. On a periodic axis y is the image
        that is nearest to x.
        """

        def one(i: Array, row: Array) -> Scalar:
            x = self.sources[i]
            return jnp.sum(row * jax.vmap(lambda way: function(x, x + way))(self._ways(i)))

        return jnp.sum(self.over_rows(one))


class NoGeodesic(eqx.Module):
    """In place of a geodesic where the coupling is not that of a map."""

    def __call__(self, time: Any) -> Any:
        """Raises: there is none."""
        raise UnsupportedCombination(
            "An entropic plan sends each point to many places, so it gives no geodesic.\n"
            "With `solver=None` densities on planes of at least 16 cells an axis have one, and particles (exact), if "
            "there\nare not too many."
        )

    def action(self) -> Any:
        """Raises: there is none."""
        return self(0.0)


class Sinkhorn(eqx.Module):
    r"""Entropic transport between many particles, for [`thalweg.wasserstein_distance`][].

    The distance is biased upwards, by up to the order of $\varepsilon$. `certificate` brackets $W_2^2$ rigorously: it
    lies between `dual` and `primal`, and `gap` bounds the bias.

    **Arguments:** `epsilon`: $\varepsilon > 0$, in units of squared length; `tolerance`: of the marginals, in mass;
    `max_steps`: of Sinkhorn's iteration.

    **Source:** Cuturi, *Sinkhorn distances* (2013); Schmitzer, *Stabilized sparse scaling algorithms* (2019).
    """

    epsilon: float = eqx.field(static=True)
    tolerance: float = eqx.field(static=True, default=1e-4)
    max_steps: int = eqx.field(static=True, default=10_000)

    def __check_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"`epsilon` of `Sinkhorn` must be positive; got {self.epsilon}.")

    def transport(self, a: Particles, b: Particles) -> Transport:
        """The entropic transport between two sets of particles."""
        x, y, w, v = jax.lax.stop_gradient((a.positions, b.positions, a.weights, b.weights))
        f, converged = _potentials(x, y, w, v, self.epsilon, self.tolerance, self.max_steps)
        # Made feasible: ψ = min over x of |x − y|² − φ, and φ the same again.
        psi = _transformed(y, x, f)
        phi = _transformed(x, y, psi)
        g = _softly_transformed(y, x, f, w, self.epsilon)
        coupling = _rounded(x, y, w, v, f, g, self.epsilon)

        def row(i: Array, masses: Array) -> tuple[Scalar, Array]:
            return jnp.sum(masses * jnp.sum((x[i][None] - y) ** 2, axis=1)), masses @ y

        costs, images = coupling.over_rows(row)
        primal, dual = jnp.sum(costs), jnp.sum(phi * w) + jnp.sum(psi * v)
        images = images / jnp.where(w > 0, w, 1)[:, None]
        value = envelope(primal, (phi, a.weights), (psi, b.weights), (2 * w[:, None] * (x - images), a.positions))
        origins = coupling.transposed.over_rows(lambda j, masses: masses @ x) / jnp.where(v > 0, v, 1)[:, None]
        value = value + envelope(jnp.zeros_like(value), (2 * v[:, None] * (y - origins), b.positions))
        statement = f"entropic, epsilon = {self.epsilon:g}: W₂² lies between dual and primal, the gap bounds the bias"
        if is_concrete(converged) and not bool(converged):
            statement += f"; stopped after {self.max_steps} steps with marginals not yet at {self.tolerance:g}"
        return Transport(
            a, b, value, images, coupling, (phi, psi), Certificate(primal, dual, statement), NoGeodesic(), "Sinkhorn"
        )


@eqx.filter_jit
def _potentials(
    x: Array, y: Array, w: Array, v: Array, epsilon: float, tolerance: float, max_steps: int
) -> tuple[Array, Flag]:
    both = jnp.concatenate([x, y])
    size = jnp.sum((jnp.max(both, axis=0) - jnp.min(both, axis=0)) ** 2)
    to_ends = lambda f, now: _softly_transformed(y, x, f, w, now)  # noqa: E731
    to_starts = lambda g, now: _softly_transformed(x, y, g, v, now)  # noqa: E731
    return annealed(to_ends, to_starts, w, size, epsilon, tolerance, max_steps)


def annealed(
    to_ends: Callable[[Array, Scalar], Array],
    to_starts: Callable[[Array, Scalar], Array],
    masses: Array,
    size: Scalar,
    epsilon: float,
    tolerance: float,
    max_steps: int,
) -> tuple[Array, Flag]:
    """Sinkhorn's iteration on the logarithms: the potential of the starts, and whether it converged.

    `to_ends` and `to_starts` are the soft transforms of a potential at a temperature, which comes down from `size`: at
    a small one alone the iteration would crawl.
    """
    goal = jnp.asarray(epsilon, masses.dtype)

    def body(carry: tuple[Array, Scalar, Scalar, Array]) -> tuple[Array, Scalar, Scalar, Array]:
        f, now, _, count = carry
        ahead = to_starts(to_ends(f, now), now)
        # With the other potential made from f the columns are exact; the rows are off by how much f changes.
        error = jnp.sum(masses * jnp.abs(jnp.expm1((f - ahead) / now)))
        error = jnp.where(now > goal, jnp.inf, error)
        return ahead, jnp.maximum(now * _COOLING, goal), error, count + 1

    def unfinished(carry: tuple[Array, Scalar, Scalar, Array]) -> Flag:
        return (carry[2] > tolerance) & (carry[3] < max_steps)

    start = (jnp.zeros_like(masses), jnp.maximum(size, goal), jnp.full_like(goal, jnp.inf), jnp.asarray(0))
    f, _, error, _ = jax.lax.while_loop(unfinished, body, start)
    return f, error <= tolerance


def _transformed(points: Array, others: Array, potential: Array) -> Array:
    """min over the others of |x − y|² less the potential there, in tiles."""
    one = lambda x: jnp.min(jnp.sum((x[None] - others) ** 2, axis=1) - potential)  # noqa: E731
    return jax.lax.map(one, points, batch_size=_TILE)


def _softly_transformed(points: Array, others: Array, potential: Array, weights: Array, epsilon: Any) -> Array:
    """The soft minimum of |x − y|² less the potential, for which one marginal is exact."""

    def one(x: Array) -> Scalar:
        exponent = (potential - jnp.sum((x[None] - others) ** 2, axis=1)) / epsilon
        return -epsilon * jax.nn.logsumexp(exponent, b=weights)

    return jax.lax.map(one, points, batch_size=_TILE)


def _rounded(x: Array, y: Array, w: Array, v: Array, f: Array, g: Array, epsilon: float) -> EntropicCoupling:
    """The plan of two potentials, scaled down where it has too much and filled up where it has too little."""
    zero = (jnp.zeros_like(w), jnp.zeros_like(v))
    left, right = (jnp.log(w) + f / epsilon)[None], (jnp.log(v) + g / epsilon)[None]
    plan = EntropicCoupling(x, y, left, right, zero, (epsilon,), (None,) * x.shape[1])
    sums = plan.over_rows(lambda i, masses: jnp.sum(masses))
    over = jnp.minimum(jnp.log(w) - jnp.log(sums), 0)
    plan = eqx.tree_at(lambda p: p.log_left, plan, plan.log_left + over[None])
    columns = plan.transposed.over_rows(lambda j, masses: jnp.sum(masses))
    over = jnp.minimum(jnp.log(v) - jnp.log(columns), 0)
    plan = eqx.tree_at(lambda p: p.log_right, plan, plan.log_right + over[None])
    missing_rows = jnp.maximum(w - plan.over_rows(lambda i, masses: jnp.sum(masses)), 0)
    missing_columns = jnp.maximum(v - plan.transposed.over_rows(lambda j, masses: jnp.sum(masses)), 0)
    total = jnp.sum(missing_rows)
    share = missing_columns / jnp.where(total > 0, jnp.sum(missing_columns), 1)
    return eqx.tree_at(lambda p: p.rest, plan, (missing_rows, share))
