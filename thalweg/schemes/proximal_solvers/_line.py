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
from thalweg.geometries.wasserstein._grid import line_faces
from thalweg.schemes._finite_volume import implicit_guess
from thalweg.schemes.proximal_solvers._base import AbstractJKOSolver, JKOStep
from thalweg.states import GridDensity

# Where the cumulative mass of a density constant on cells is that of the smooth density; see above.
_NODES, _WEIGHTS = np.array([0.5 - 6**-0.5, 0.5 + 6**-0.5]), np.array([0.5, 0.5])
# The largest |(log q)'| h that the correction of the quantiles knows; up to 1.7 they keep rising.
_STEEPEST = 1.5


class LineJKO(AbstractJKOSolver):
    r"""Newton's method for the JKO step of a one-dimensional grid density.

    Energies without a logarithmic part may leave cells empty; their positivity is kept by a logarithmic barrier that
    is driven to `barrier`, which bounds the error in the objective by `barrier` times the length of the domain. It is
    in units of energy over length: for energies far below one give a smaller one.

    **Arguments:** `tolerance`: the optimality residual (the norm of the gradient of the objective relative to the
    dissipation at the start); `max_steps`: of Newton's method; `barrier`: the last value of the barrier's weight.
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
        positive = decompose(energy).needs_positive_density
        state = metric.state
        problem = _Problem(energy, state, step_size, _Quantiles.of(state))
        closed = eqx.filter_closure_convert(problem.expand, state.values)
        floor = 1e-14 if positive else 1e-6
        start = (1 - floor) * guess.values + floor / (state.grid.num_cells * state.grid.cell_volume)
        last_mu = 0.0 if positive else self.barrier
        closed_now, start, slope = _tree.stop_gradient((closed, start, problem.start_slope()))
        first_mu = 0.0 if positive else 1e-3
        values, residual, fine = self._newton(closed_now, start, slope, first_mu, last_mu, state.grid.cell_volume)
        # One more step with a frozen Hessian gives the derivative by the implicit function theorem and changes
        # nothing at the minimum.
        expansion = closed(values).with_barrier(values, last_mu, state.grid.cell_volume)
        step = _solve(jax.lax.stop_gradient(expansion.bands), -expansion.gradient)
        refined = _moved(values, step, state.grid.cell_volume)
        values = jnp.where(jnp.all(refined > 0) & jnp.all(jnp.isfinite(refined)), refined, values)
        moved = eqx.tree_at(lambda s: s.values, state, values)
        return JKOStep(moved, metric.distance_squared(moved), residual, fine, memory, {})

    def _newton(
        self, expand: Any, start: Array, start_slope: Array, first_mu: float, last_mu: float, width: float
    ) -> tuple[Array, Scalar, Flag]:
        reference = _residual(start_slope, start, width)
        goal = self.tolerance * (reference + jnp.sqrt(jnp.finfo(start.dtype).eps))

        def body(carry: _Carry) -> _Carry:
            # The Hessian is evaluated at every trial point, so that there is one copy of it to compile; it costs O(n).
            trial = carry.values + carry.length * carry.rate
            expansion = expand(trial).with_barrier(trial, carry.mu, width)
            slack = 64 * jnp.finfo(start.dtype).eps * (jnp.abs(carry.value) + 1)
            enough = carry.value + 1e-4 * carry.length * carry.slope + slack
            accepted = (expansion.value <= enough) | (carry.cuts >= 30)
            # The barrier goes down after each step that was hardly shortened: its problem is then solved well enough.
            mu = jnp.where(carry.length > 0.9, jnp.maximum(0.2 * carry.mu, last_mu), carry.mu)
            lowered = expansion.with_barrier(trial, mu - carry.mu, width)
            step = _solve(lowered.bands, -lowered.gradient)
            rate = _moved(trial, step, width) - trial
            room = jnp.min(jnp.where(rate < 0, -trial / jnp.where(rate < 0, rate, -1), jnp.inf))
            ahead = _Carry(
                trial,
                mu,
                lowered.value,
                rate,
                jnp.sum(lowered.gradient * step),
                jnp.minimum(1.0, 0.95 * room),
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
        fine = (last.residual <= 1e3 * goal) & (last.mu <= last_mu)
        return jax.lax.stop_gradient((last.values, last.residual / reference, fine))


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


class _Expansion(eqx.Module):
    """The objective to second order in the mass moved across each interior face."""

    value: Scalar
    gradient: Array
    bands: tuple[Array, Array, Array]

    def with_barrier(self, values: Array, mu: Any, width: float) -> "_Expansion":
        """The same with $-\\mu\\sum\\log q_i\\,h$ added."""
        lower, diagonal, upper = self.bands
        slope, curvature = -mu / values, mu / (values**2 * width)
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
    old: "_Quantiles"

    def start_slope(self) -> Array:
        """The gradient of the objective at the old state, where the distance has none."""
        return jnp.diff(first_variation(self.energy, self.state).regular.values)

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
        below, above = _both_sides(values * width)
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


def _rank(level: Array, rest: Array) -> Array:
    """A rising function of the level that keeps the digits of both tails, from minus to plus infinity."""
    left = level < 0.5
    return jax.lax.stop_gradient(jnp.where(left, -1.0, 1.0) / jnp.where(left, level, rest))


def _both_sides(mass: Array) -> tuple[Array, Array]:
    """The mass to the left and to the right of each face: in the right tail only the second still has digits."""
    zero = jnp.zeros((1,), mass.dtype)
    below = jnp.concatenate([zero, jnp.cumsum(mass)])
    above = jnp.concatenate([jnp.cumsum(mass[::-1])[::-1], zero])
    return below, above


class _Quantiles(eqx.Module):
    """The quantile function of the old density, tabulated once for all iterations."""

    mass: Array
    faces: Array
    below: Array
    above: Array
    integral: Array
    slopes: Array
    width: float = eqx.field(static=True)

    @classmethod
    def of(cls, state: GridDensity) -> "_Quantiles":
        """The tables of a density; `integral` is that of the quantile up to each face, `slopes` are $h(\\log
        q)'$ at the faces.
        """
        width, mass = state.grid.cell_volume, state.values * state.grid.cell_volume
        faces = line_faces(state.grid, mass.dtype)
        both = mass[1:] + mass[:-1]
        slopes = jnp.where(both > 0, 2 * jnp.diff(mass) / jnp.where(both > 0, both, 1), 0)
        # Zero at the walls: the first quantile is the wall itself.
        slopes = jnp.pad(jnp.clip(slopes, -_STEEPEST, _STEEPEST), 1)
        moments = mass * (faces[:-1] + width * (0.5 + (slopes[1:] + slopes[:-1]) / 48))
        return cls(mass, faces, *_both_sides(mass), jnp.cumsum(moments) - moments, slopes, width)

    def back_map(self, level: Array, rest: Array) -> tuple[Array, Array, Array]:
        """The quantile Q at each level, one over the density there, and ∫₀Q; looked up from the nearer end."""
        n, mass = self.mass.shape[0], self.mass
        found = jnp.searchsorted(_rank(self.below, self.above), _rank(level, rest), side="right")
        cell = jnp.clip(found - 1, 0, n - 1)
        from_left = level < 0.5
        inside = mass[cell] > 0
        safe = jnp.where(inside, mass[cell], 1)
        from_right = 1 - (rest - self.above[cell + 1]) / safe
        fraction = jnp.where(from_left, (level - self.below[cell]) / safe, from_right)
        fraction = jnp.where(inside, jnp.clip(fraction, 0, 1), 0.5)
        # The correction is a cubic in the place of the level in its cell.
        t, first = fraction, self.slopes[cell]
        rise = self.slopes[cell + 1] - first
        bump, bump_slope = 0.5 * t * (1 - t) - 1 / 24, 0.5 - t
        place = t + bump * (first + rise * t)
        stretch = 1 + bump_slope * (first + rise * t) + bump * rise
        integral = t * (0.5 * t + first * (t / 4 - t**2 / 6 - 1 / 24) + rise * t * (t / 6 - t**2 / 8 - 1 / 48))
        antiderivative = self.integral[cell] + mass[cell] * (self.faces[cell] * t + self.width * integral)
        return self.faces[cell] + self.width * place, jnp.where(inside, self.width * stretch / safe, 0), antiderivative


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
