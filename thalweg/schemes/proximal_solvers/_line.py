r"""The JKO step on the line: the exact Wasserstein distance, on the grid itself.

$$q^+ = \operatorname{argmin}_{q} \frac{W_2^2(q, q_t)}{2\alpha} + F(q).$$

Candidates that were weighed. (1) Positions of quantiles as unknowns: convex and simple, but each step must be mapped
back to the cells, which diffuses by $O(h^2)$ a step, and equal masses resolve the tails badly. (2) A linearised
distance: one linear solve, but not the true step at large $\alpha$. (3) The masses of the cells as unknowns, with
$W_2$ from the quantile functions of both densities: $W_2^2$ is convex in $q$, its gradient is the Kantorovich
potential, and in the variables "mass moved across each face" its Hessian is tridiagonal. So Newton's method costs
$O(n)$ an iteration. (3) is used. Each step is then checked: $F(q^+) + W_2^2/2\alpha \le F(q_t)$ for the numbers that
are stored, with the distance of densities constant on cells (the shorter one by $O(h^2)$, see below).

With $J_j$ the mass moved across face $j$, $C(x)$ the cumulative mass and $T(x) = Q_t(C(x))$ the optimal map back,

$$\partial_{J_j}\tfrac12 W_2^2 = \int (x - T(x))\,\Lambda_j(x)\,\mathrm dx, \qquad
\partial^2_{J_j J_k}\tfrac12 W_2^2 = \int \frac{\Lambda_j(x)\Lambda_k(x)}{q_t(T(x))}\,\mathrm dx,$$

with $\Lambda_j$ the hat function of face $j$.

**Fourth order in space.** The values are those of a smooth density $q$ at the centres: sums over cells of smooth
functions that vanish at the walls are then exact to all orders, and the discrete Gibbs state is a fixed point. Only the
distance needs care, since a density constant on cells is $q$ after a heat flow of time $h^2/24$, which shortens
distances. At the place $\theta$ in a cell its cumulative mass is too large by

$$\bar C - C = h^2 q' \left(\tfrac12\theta(1-\theta) - \tfrac1{24}\right) + O(h^3)\ \text{(odd about the centre)}.$$

So $C$ is read at the two places $\theta = \frac12 \pm 6^{-1/2}$ of each cell where that vanishes; any symmetric rule
summed over all cells is of fourth order. The quantile function of the old density is corrected by the same formula,
$Q_t = \bar Q_t + (\bar C - C)/q$. Its derivative is kept positive, so that $W_2^2$ stays convex, and for $q = q_t$ the
correction is zero at the two places, so that the distance is least there. The odd part averages out, except where all
mass moves by the same fraction of a cell: the step is then of third order. It is of second order at a wall where the
density does not vanish.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax.linalg import tridiagonal_solve

from thalweg import _tree
from thalweg._first_variation import energy_and_first_variation, first_variation
from thalweg._types import Array, Flag, Scalar
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractMetric
from thalweg.geometries.wasserstein import LineMetric
from thalweg.schemes._finite_volume import implicit_guess
from thalweg.schemes.proximal_solvers._base import AbstractJKOSolver, JKOStep
from thalweg.schemes.proximal_solvers._implicit import root
from thalweg.schemes.proximal_solvers._quantiles import Quantiles, both_sides
from thalweg.states import GridDensity

# Where the cumulative mass of a density constant on cells is that of the smooth density; see above.
_NODES, _WEIGHTS = np.array([0.5 - 6**-0.5, 0.5 + 6**-0.5]), np.array([0.5, 0.5])


class LineJKO(AbstractJKOSolver):
    r"""Newton's method for the JKO step of a one-dimensional grid density.

    Energies without a logarithmic part may leave cells empty; their positivity is kept by a logarithmic barrier,
    whose weight is driven to `barrier` times the mean density times the spread (the standard deviation under the old
    density) of the first variation: the error in the objective is at most `barrier` times that spread times the mass.

    The derivative is that of the implicit function theorem, of first order and with the exact Hessian: conjugate
    gradients, with the three bands as preconditioner. Where the Hessian is not positive, it is NaN.

    **Arguments:** `tolerance`: the optimality residual (the norm of the gradient of the objective relative to the
    dissipation at the start); `max_steps`: of Newton's method; `barrier`: the last value of the barrier's relative
    weight.
    """

    tolerance: float = eqx.field(static=True, default=1e-9)
    max_steps: int = eqx.field(static=True, default=200)
    barrier: float = eqx.field(static=True, default=1e-11)

    @property
    def distance_label(self) -> str:
        return "the Wasserstein distance itself, of fourth order in space; recorded for densities constant on cells"

    def why_unsupported(self, energy: AbstractEnergy, metric: AbstractMetric) -> str | None:
        if not isinstance(metric, LineMetric):
            return (
                "`LineJKO` solves the JKO step of a one-dimensional `GridDensity` with walls in the "
                "Wasserstein geometry.\n"
                "Use `solver=None`, or `scheme=tw.Continuous(step_size)` for other grids."
            )
        return None

    def init(self, energy: AbstractEnergy, metric: AbstractMetric) -> Any:
        return None

    def solve(self, energy: AbstractEnergy, metric: AbstractMetric, step_size: Scalar, memory: Any) -> JKOStep:
        assert isinstance(metric, LineMetric)
        # An implicit step of the flow is where to begin: it is positive, and near the answer in the tails too.
        guess = implicit_guess(energy, metric.state, step_size)
        structure, state = decompose(energy), metric.state
        positive, width = structure.needs_positive_density, state.grid.cell_volume
        problem = _Problem(energy, state, step_size, Quantiles.of(state))
        closed = eqx.filter_closure_convert(problem.expand, state.values)
        floor = 1e-14 if positive else 1e-6
        start = (1 - floor) * guess.values + floor * jnp.mean(guess.values)
        closed_now, start, scales = _tree.stop_gradient((closed, start, problem.scales(start)))
        last_mu = 0.0 if positive else self.barrier * scales.barrier
        first_mu = 0.0 if positive else 1e-3 * scales.barrier
        move = _retracted if structure.temperature is not None else _straight
        values, residual, fine = self._newton(closed_now, start, scales, first_mu, last_mu, width, move)
        # One more step, without a test of the descent, which sees the objective only to rounding.
        expansion = closed_now(values).with_barrier(values, last_mu, width)
        rate = _moved(jnp.zeros_like(values), _solve(expansion.bands, -expansion.gradient), width)
        refined = move(values, rate, 1.0)
        good = jnp.all(refined > 0) & jnp.all(jnp.isfinite(refined))
        values = jax.lax.stop_gradient(jnp.where(good, refined, values))
        bands = jax.lax.stop_gradient(expansion.bands)
        values = _differentiable(closed, state.values, values, last_mu, width, bands)
        moved = eqx.tree_at(lambda s: s.values, state, values)
        return JKOStep(moved, metric.distance_squared(moved), residual, fine, memory, {})

    def _newton(
        self, expand: Any, start: Array, scales: "_Scales", first_mu: Any, last_mu: Any, width: float, move: Any
    ) -> tuple[Array, Scalar, Flag]:
        goal = self.tolerance * scales.velocity + scales.rounding

        def body(carry: _Carry) -> _Carry:
            # The Hessian is evaluated at every trial point, so that there is one copy of it to compile; it costs O(n).
            trial = move(carry.values, carry.rate, carry.length)
            expansion = expand(trial).with_barrier(trial, carry.mu, width)
            slack = 64 * jnp.finfo(start.dtype).eps * (jnp.abs(carry.value) + scales.objective)
            enough = carry.value + 1e-4 * carry.length * carry.slope + slack
            accepted = (expansion.value <= enough) | (carry.cuts >= 30)
            # The barrier goes down after each step that was hardly shortened: its problem is then solved well enough.
            mu = jnp.where(carry.length > 0.9, jnp.maximum(0.2 * carry.mu, last_mu), carry.mu)
            lowered = expansion.with_barrier(trial, mu - carry.mu, width)
            step = _solve(lowered.bands, -lowered.gradient)
            rate = _moved(jnp.zeros_like(trial), step, width)
            ahead = _Carry(
                trial,
                mu,
                lowered.value,
                rate,
                jnp.sum(lowered.gradient * step),
                _longest(trial, rate, move is _retracted),
                jnp.zeros_like(carry.cuts),
                _residual(lowered.gradient, trial, width),
                carry.count + 1,
            )
            shorter = eqx.tree_at(
                lambda c: (c.length, c.cuts, c.count), carry, (0.5 * carry.length, carry.cuts + 1, carry.count + 1)
            )
            return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), ahead, shorter)

        def unfinished(carry: _Carry) -> Flag:
            return ((carry.residual > goal) | (carry.mu > last_mu)) & (carry.count < self.max_steps)

        number = lambda value: jnp.asarray(value, start.dtype)  # noqa: E731
        zero = jnp.asarray(0)
        # An infinite value makes the first trial, at the start itself, accepted.
        begin = _Carry(
            start, number(first_mu), number(jnp.inf), 0 * start, number(0), number(0), zero, number(jnp.inf), zero
        )
        last = jax.lax.while_loop(unfinished, body, begin)
        # Below the goal is convergence; within a thousand times it, rounding in the tails has stopped the descent.
        fine = (last.residual <= 1e3 * self.tolerance * scales.velocity + 30 * scales.rounding) & (last.mu <= last_mu)
        relative = last.residual / (scales.velocity + scales.rounding / self.tolerance)
        return jax.lax.stop_gradient((last.values, relative, fine))


class _Carry(eqx.Module):
    values: Array
    mu: Scalar
    value: Scalar
    rate: Array
    slope: Scalar
    length: Scalar
    cuts: Array
    residual: Scalar
    count: Array


class _Scales(eqx.Module):
    """What is large and what is small in a problem: the missing velocity at the start and that of rounding, a size of
    the objective, and the unit of the barrier's weight.
    """

    velocity: Scalar
    rounding: Scalar
    objective: Scalar
    barrier: Scalar


class _Expansion(eqx.Module):
    """The objective to second order in the mass moved across each interior face."""

    value: Scalar
    gradient: Array
    bands: tuple[Array, Array, Array]

    def with_barrier(self, values: Array, mu: Any, width: float) -> "_Expansion":
        """The same with $-\\mu\\sum\\log q_i\\,h$ added."""
        lower, diagonal, upper = self.bands
        # Not over the square of a value, which underflows in a tail.
        slope, curvature = -mu / values, mu / values / values / width
        off = -curvature[1:-1]
        zero = jnp.zeros((1,), values.dtype)
        bands = (
            lower + jnp.concatenate([zero, off]),
            diagonal + curvature[1:] + curvature[:-1],
            upper + jnp.concatenate([off, zero]),
        )
        value = self.value - mu * jnp.sum(jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).tiny))) * width
        return _Expansion(value, self.gradient + jnp.diff(slope), bands)


def _residual(gradient: Array, values: Array, width: float) -> Scalar:
    r"""$(\int q\,|\nabla(\delta F/\delta q + \varphi/\alpha)|^2)^{1/2}$: the velocity that is still missing."""
    density = jnp.minimum(values[1:], values[:-1])
    return jnp.sqrt(jnp.sum(density * (gradient / width) ** 2) * width)


class _Problem(eqx.Module):
    energy: AbstractEnergy
    state: GridDensity
    step_size: Scalar
    old: "Quantiles"

    def scales(self, start: Array) -> _Scales:
        """Taken from the first variation where there is mass: a potential may be huge where nothing ever comes."""
        values, width = self.state.values, self.state.grid.cell_volume
        eps, length = jnp.finfo(values.dtype).eps, width * values.shape[0]
        variation = first_variation(self.energy, self.state).regular.values
        # The distance has no gradient at the old state.
        velocity = _residual(jnp.diff(variation), start, width)
        mass = jnp.sum(values) * width
        average = lambda f: jnp.sum(jnp.where(values > 0, values * f, 0)) * width / mass  # noqa: E731
        size = average(jnp.abs(variation))
        spread = jnp.sqrt(average((variation - average(variation)) ** 2))
        # Where the old state is at rest the spread is rounding: the barrier then still needs a weight.
        unit = spread + jnp.sqrt(eps) * size + eps * length**2 / self.step_size
        rounding = eps * (length / self.step_size + size / width) * jnp.sqrt(mass)
        return _Scales(velocity, rounding, size * mass, unit * mass / length)

    def expand(self, values: Array) -> _Expansion:
        """The objective, its gradient and the three bands of its Hessian."""
        width = self.state.grid.cell_volume
        moved = eqx.tree_at(lambda s: s.values, self.state, values)
        value, cotangent = energy_and_first_variation(self.energy, moved)
        curvature = self._local_curvature(values) / width
        half_distance, (gap_left, gap_right), tents = self._transport(values)
        left, cross, right = (tent / self.step_size for tent in tents)
        # Face j lies between cells j and j+1: it is the right end of cell j and the left end of cell j+1.
        gradient = jnp.diff(cotangent.regular.values) + (gap_right[:-1] + gap_left[1:]) / self.step_size
        diagonal = curvature[1:] + curvature[:-1] + right[:-1] + left[1:]
        off = -curvature[1:-1] + cross[1:-1]
        zero = jnp.zeros((1,), values.dtype)
        bands = (jnp.concatenate([zero, off]), diagonal, jnp.concatenate([off, zero]))
        return _Expansion(value + half_distance / self.step_size, gradient, bands)

    def _local_curvature(self, values: Array) -> Array:
        structure = decompose(self.energy)
        points = self.state.grid.centres.astype(values.dtype)
        curvature = jnp.zeros_like(values)
        if structure.local:
            second = jax.vmap(jax.grad(jax.grad(structure.local_value)))(values, points)
            curvature = curvature + jnp.maximum(second, 0)
        if structure.temperature is not None:
            curvature = curvature + jnp.asarray(structure.temperature, values.dtype) / values
        return curvature

    def _transport(self, values: Array) -> tuple[Scalar, tuple[Array, Array], tuple[Array, Array, Array]]:
        """½W₂² less a constant; and for each cell ∫(x − T)Λ for its two hats, and ∫ΛΛ/q(T) for the pairs of hats."""
        grid = self.state.grid
        width = grid.cell_volume
        dtype = values.dtype
        nodes, weights = jnp.asarray(_NODES, dtype)[:, None], jnp.asarray(_WEIGHTS * width, dtype)[:, None]
        below, above = both_sides(values * width)
        mass = values * width
        level = below[None, :-1] + nodes * mass[None]
        rest = above[None, 1:] + (1 - nodes) * mass[None]
        # The barrier keeps the compiler from looking everything up again for each of the sums below.
        back, inverse_density, antiderivative = jax.lax.optimization_barrier(self.old.back_map(level, rest))
        x = self.old.faces[None, :-1] + nodes * width
        right_hat = jnp.broadcast_to(nodes, x.shape)
        left_hat = 1 - right_hat
        sums = lambda f: jnp.sum(weights * f, axis=0)  # noqa: E731
        gap = x - back
        tents = (
            sums(inverse_density * left_hat**2),
            sums(inverse_density * left_hat * right_hat),
            sums(inverse_density * right_hat**2),
        )
        # With A' = Q, ½W₂² = const + ∫(A(C(x)) − x C(x))dx: at the same nodes, so that the gradient is exactly its own.
        half_distance = jnp.sum(sums(antiderivative - x * level))
        return half_distance, (sums(gap * left_hat), sums(gap * right_hat)), tents


# Below this share of the mass cells shrink by a factor instead of shortening the step for all others.
_NEGLIGIBLE = 1e-12


def _straight(values: Array, rate: Array, share: Any) -> Array:
    return values + share * rate


def _retracted(values: Array, rate: Array, share: Any) -> Array:
    r"""The same to first order, and positive: cells in the tails that lose most of what they have go to
    $q\,e^{\dot q/q}$.

    With an entropy $\log q$ is what Newton's method sees as linear there, so that it arrives at once however far it
    has to go: from an empty cell, the tail of a step ends below the smallest number. The others pay for the mass.
    """
    change = share * rate
    straight = values + change
    shrinks = _shrinking(values, rate) & (change < -0.5 * values)
    # As many digits below the smallest number as one over it, or over its curvature, needs.
    lowest = jnp.mean(values) * jnp.finfo(values.dtype).tiny ** 0.9
    # Bounded, so that no ratio of neighbours is lost to rounding at once.
    factor = jnp.exp(jnp.maximum(jnp.where(shrinks, change / values, 0), -30.0))
    bent = jnp.where(shrinks, jnp.maximum(values * factor, lowest), straight)
    return jnp.where(jnp.any(shrinks), bent * (jnp.sum(values) / jnp.sum(bent)), straight)


def _shrinking(values: Array, rate: Array) -> Array:
    """The cells that a full step would take most of, smallest first up to a negligible share of the mass."""
    losing = rate < -0.5 * values
    order = jnp.argsort(values)
    lost = jnp.cumsum(jnp.where(losing, values, 0)[order])
    small = jnp.zeros_like(losing).at[order].set(lost <= _NEGLIGIBLE * jnp.sum(values))
    return losing & small


def _longest(values: Array, rate: Array, retracted: bool) -> Scalar:
    """The longest step, at most one, that leaves a part of each cell that moves straight."""
    down = rate < 0
    if retracted:
        down = down & ~_shrinking(values, rate)
    return jnp.minimum(1.0, 0.95 * jnp.min(jnp.where(down, -values / jnp.where(down, rate, -1), jnp.inf)))


def _differentiable(expand: Any, old: Array, found: Array, mu: Any, width: float, bands: Any) -> Array:
    """`found`, with the derivative of the minimiser; of the mass of the old density it is a multiple."""
    mass = jnp.sum(old)
    found = found * (mass / jax.lax.stop_gradient(mass))

    def slope(face_masses: Array) -> Array:
        values = _moved(found, face_masses, width)
        return expand(values).with_barrier(values, mu, width).gradient

    def tangent_solve(operator: Any, right: Array) -> Array:
        solve = lambda product, vector: _conjugate_gradients(product, bands, vector)  # noqa: E731
        return jax.lax.custom_linear_solve(operator, right, solve, symmetric=True)

    return _moved(found, root(slope, jnp.zeros_like(found[1:]), tangent_solve), width)


def _conjugate_gradients(product: Any, bands: tuple[Array, Array, Array], right: Array) -> Array:
    """Solve with the exact Hessian; NaN where it is not positive, or not solved with to six digits."""

    def body(carry: Any) -> Any:
        x, remainder, direction, square, _, count = carry
        image = product(direction)
        curvature = jnp.sum(direction * image)
        length = square / curvature
        remainder = remainder - length * image
        preconditioned = _solve(bands, remainder)
        after = jnp.sum(remainder * preconditioned)
        ahead = preconditioned + after / square * direction
        return x + length * direction, remainder, ahead, after, curvature > 0, count + 1

    first = _solve(bands, right)
    square = jnp.sum(right * first)
    eps = jnp.finfo(right.dtype).eps
    begin = (jnp.zeros_like(right), right, first, square, jnp.asarray(True), jnp.asarray(0))
    going = lambda carry: (carry[3] > (100 * eps) ** 2 * square) & carry[4] & (carry[5] < 500)  # noqa: E731
    x, _, _, left, positive, _ = jax.lax.while_loop(going, body, begin)
    return jnp.where(positive & (left <= 1e-12 * square), x, jnp.nan)


def _solve(bands: tuple[Array, Array, Array], right: Array) -> Array:
    """Solve a symmetric tridiagonal system given by its lower, middle and upper band."""
    lower, diagonal, upper = bands
    # Scaled to a unit diagonal: in the tails the entries differ by hundreds of orders of magnitude.
    scale = jax.lax.rsqrt(jnp.maximum(diagonal, jnp.finfo(diagonal.dtype).tiny))
    before = jnp.concatenate([scale[:1], scale[:-1]])
    after = jnp.concatenate([scale[1:], scale[-1:]])
    scaled = (lower * scale * before, diagonal * scale**2, upper * scale * after)
    return scale * tridiagonal_solve(*scaled, (right * scale)[:, None])[:, 0]


def _moved(values: Array, face_masses: Array, width: float) -> Array:
    """The density after a mass has crossed each interior face from left to right."""
    zero = jnp.zeros((1,), values.dtype)
    crossing = jnp.concatenate([zero, face_masses, zero])
    return values - jnp.diff(crossing) / width
