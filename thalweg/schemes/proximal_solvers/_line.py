r"""The JKO step on the line: the exact Wasserstein distance, on the grid itself.

$$q^+ = \operatorname{argmin}_{q} \frac{W_2^2(q, q_t)}{2\alpha} + F(q).$$

Candidates that were weighed. (1) Positions of quantiles as unknowns: convex and simple, but each step must be mapped
back to the cells, which diffuses by $O(h^2)$ a step, and equal masses resolve the tails badly. (2) A linearised
distance: one linear solve, but not the true step at large $\alpha$. (3) The masses of the cells as unknowns, with
$W_2$ exact for densities constant on cells: $W_2^2$ is convex in $q$, its gradient is the Kantorovich potential, and
in the variables "mass moved across each face" its Hessian is tridiagonal. So Newton's method costs $O(n)$ an
iteration and the certificate $F(q^+) + W_2^2/2\alpha \le F(q_t)$ holds for the very numbers that are stored. (3) is
used.

With $J_j$ the mass moved across face $j$, $C(x)$ the cumulative mass and $T(x) = Q_t(C(x))$ the optimal map back,

$$\partial_{J_j}\tfrac12 W_2^2 = \int (x - T(x))\,\Lambda_j(x)\,\mathrm dx, \qquad
\partial^2_{J_j J_k}\tfrac12 W_2^2 = \int \frac{\Lambda_j(x)\Lambda_k(x)}{q_t(T(x))}\,\mathrm dx,$$

with $\Lambda_j$ the hat function of face $j$. Both integrals are done by Gauss–Legendre quadrature in each cell.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax.linalg import tridiagonal_solve

from thalweg._first_variation import first_variation
from thalweg._types import Array, Flag, Scalar
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries.wasserstein import LineMetric
from thalweg.states import GridDensity

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1), 0.5 * _WEIGHTS


class LineJKO(eqx.Module):
    r"""Newton's method for the JKO step of a one-dimensional grid density.

    Energies without a logarithmic part may leave cells empty; their positivity is kept by a logarithmic barrier that
    is driven to `barrier`, which bounds the error in the objective by `barrier` times the mass.

    **Arguments:** `tolerance`: the optimality residual (the norm of the gradient of the objective relative to the
    dissipation at the start); `max_steps`: of Newton's method; `barrier`: the last value of the barrier's weight.
    """

    tolerance: float = eqx.field(static=True, default=1e-9)
    max_steps: int = eqx.field(static=True, default=200)
    barrier: float = eqx.field(static=True, default=1e-11)

    def solve(
        self, energy: AbstractEnergy, metric: LineMetric, step_size: Scalar, guess: GridDensity
    ) -> tuple[GridDensity, Scalar, Flag]:
        """The minimiser, its optimality residual, and whether it converged; `guess` is a positive density to start
        from.
        """
        positive = decompose(energy).needs_positive_density
        state = metric.state
        problem = _Problem(energy, state, step_size)
        closed = eqx.filter_closure_convert(
            lambda values, mu: problem.gradient_and_hessian(values, mu), state.values, step_size
        )
        frozen = _stopped(closed)
        objective = _stopped(eqx.filter_closure_convert(lambda values: problem.objective(values), state.values))
        floor = 1e-14 if positive else 1e-6
        start = jax.lax.stop_gradient(
            (1 - floor) * guess.values + floor / (state.grid.num_cells * state.grid.cell_volume)
        )
        reference = jax.lax.stop_gradient(problem.residual(problem.start_gradient(), state.values))
        values, residual, fine = self._newton(frozen, objective, problem, start, positive, reference)
        # One more step with a frozen Hessian gives the derivative by the implicit function theorem and changes
        # nothing at the minimum.
        mu = jnp.asarray(0.0 if positive else self.barrier, values.dtype)
        gradient, (lower, diagonal, upper) = closed(values, mu)
        frozen_bands = jax.lax.stop_gradient((lower, diagonal, upper))
        step = _solve(frozen_bands, -gradient)
        refined = _moved(values, step, state.grid.cell_volume)
        values = jnp.where(jnp.all(refined > 0) & jnp.all(jnp.isfinite(refined)), refined, values)
        return eqx.tree_at(lambda s: s.values, state, values), residual, fine

    def _newton(
        self, system: Any, objective: Any, problem: "_Problem", start: Array, positive: bool, reference: Scalar
    ) -> tuple[Array, Scalar, Flag]:
        width = problem.state.grid.cell_volume
        goal = self.tolerance * (reference + jnp.sqrt(jnp.finfo(start.dtype).eps))
        last_mu = 0.0 if positive else self.barrier
        first_mu = 0.0 if positive else 1e-3

        def merit(values: Array, mu: Scalar) -> Scalar:
            barrier = (
                0.0 if positive else mu * jnp.sum(jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).tiny))) * width
            )
            return objective(values) - barrier

        def body(carry: tuple[Array, Scalar, Scalar, Array]) -> tuple[Array, Scalar, Scalar, Array]:
            values, mu, _, count = carry
            gradient, bands = system(values, mu)
            step = _solve(bands, -gradient)
            rate = _moved(values, step, width) - values
            ratio = jnp.min(jnp.where(rate < 0, -values / jnp.where(rate < 0, rate, -1), jnp.inf))
            longest = jnp.minimum(1.0, 0.95 * ratio)
            value, slope = merit(values, mu), jnp.sum(gradient * step)
            slack = 64 * jnp.finfo(values.dtype).eps * (jnp.abs(value) + 1)

            def too_long(search: tuple[Scalar, Array]) -> Flag:
                length, cuts = search
                new = merit(values + length * rate, mu)
                return ~(new <= value + 1e-4 * length * slope + slack) & (cuts < 30)

            length, _ = jax.lax.while_loop(too_long, lambda s: (0.5 * s[0], s[1] + 1), (longest, jnp.asarray(0)))
            values = jnp.maximum(values + length * rate, jnp.finfo(values.dtype).tiny)
            residual = problem.residual(system(values, mu)[0], values)
            # The barrier goes down once its own problem is solved well enough.
            centred = (residual <= jnp.maximum(goal, 10 * mu)) | (length > 0.9)
            mu = jnp.where(centred, jnp.maximum(0.2 * mu, last_mu), mu)
            return values, mu, residual, count + 1

        def unfinished(carry: tuple[Array, Scalar, Scalar, Array]) -> Flag:
            _, mu, residual, count = carry
            return ((residual > goal) | (mu > last_mu)) & (count < self.max_steps)

        carry = (start, jnp.asarray(first_mu, start.dtype), jnp.asarray(jnp.inf, start.dtype), jnp.asarray(0))
        values, mu, residual, _ = jax.lax.while_loop(unfinished, body, carry)
        # Below the goal is convergence; within a thousand times it, rounding in the tails has stopped the descent.
        fine = (residual <= 1e3 * goal) & (mu <= last_mu)
        return jax.lax.stop_gradient((values, residual / reference, fine))


class _Problem(eqx.Module):
    energy: AbstractEnergy
    state: GridDensity
    step_size: Scalar

    def _with(self, values: Array) -> GridDensity:
        return eqx.tree_at(lambda s: s.values, self.state, values)

    def objective(self, values: Array) -> Scalar:
        moved = self._with(values)
        return self.energy(moved) + LineMetric(self.state).distance_squared(moved) / (2 * self.step_size)

    def start_gradient(self) -> Array:
        xi = first_variation(self.energy, self.state).regular.values
        return jnp.diff(xi)

    def residual(self, gradient: Array, values: Array) -> Scalar:
        r"""$(\int q\,|\nabla(\delta F/\delta q + \varphi/\alpha)|^2)^{1/2}$: the velocity that is still missing."""
        width = self.state.grid.cell_volume
        density = jnp.minimum(values[1:], values[:-1])
        return jnp.sqrt(jnp.sum(density * (gradient / width) ** 2) * width)

    def gradient_and_hessian(self, values: Array, mu: Scalar) -> tuple[Array, tuple[Array, Array, Array]]:
        """The gradient in the mass moved across each interior face, and the three bands of the Hessian."""
        width = self.state.grid.cell_volume
        xi = first_variation(self.energy, self._with(values)).regular.values - mu / values
        curvature = self._local_curvature(values) / width + mu / (values**2 * width)
        tent_gap, tent_left, tent_cross, tent_right = self._transport(values)
        # Face j lies between cells j and j+1: it is the right end of cell j and the left end of cell j+1.
        gradient = jnp.diff(xi) + (tent_gap[1][:-1] + tent_gap[0][1:]) / self.step_size
        diagonal = curvature[1:] + curvature[:-1] + (tent_right[:-1] + tent_left[1:]) / self.step_size
        off = -curvature[1:-1] + tent_cross[1:-1] / self.step_size
        zero = jnp.zeros((1,), values.dtype)
        return gradient, (jnp.concatenate([zero, off]), diagonal, jnp.concatenate([off, zero]))

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

    def _transport(self, values: Array) -> tuple[tuple[Array, Array], Array, Array, Array]:
        """For each cell: ∫(x − T)Λ for its left and right hats, and ∫ΛΛ/q(T) for left-left, left-right and
        right-right.
        """
        grid = self.state.grid
        width = grid.cell_volume
        dtype = values.dtype
        nodes, weights = jnp.asarray(_NODES, dtype), jnp.asarray(_WEIGHTS * width, dtype)
        faces = jnp.linspace(grid.lower[0], grid.upper[0], grid.shape[0] + 1, dtype=dtype)
        below, above = _both_sides(values * width)
        mass = values * width
        level = below[:-1, None] + nodes[None] * mass[:, None]
        rest = above[1:, None] + (1 - nodes[None]) * mass[:, None]
        back, inverse_density = _back_map(level, rest, self.state.values * width, faces, width)
        x = faces[:-1, None] + nodes[None] * width
        right_hat = jnp.broadcast_to(nodes[None], x.shape)
        left_hat = 1 - right_hat
        sums = lambda f: jnp.sum(weights[None] * f, axis=1)  # noqa: E731
        gap = x - back
        return (
            (sums(gap * left_hat), sums(gap * right_hat)),
            sums(inverse_density * left_hat**2),
            sums(inverse_density * left_hat * right_hat),
            sums(inverse_density * right_hat**2),
        )


def _both_sides(mass: Array) -> tuple[Array, Array]:
    """The mass to the left and to the right of each face: in the right tail only the second still has digits."""
    zero = jnp.zeros((1,), mass.dtype)
    below = jnp.concatenate([zero, jnp.cumsum(mass)])
    above = jnp.concatenate([jnp.cumsum(mass[::-1])[::-1], zero])
    return below, above


def _back_map(level: Array, rest: Array, mass: Array, faces: Array, width: float) -> tuple[Array, Array]:
    """The quantile of the old density at each level, and one over its density there, from the nearer end."""
    below, above = _both_sides(mass)
    n = mass.shape[0]
    left_cell = jnp.clip(jnp.searchsorted(below, level, side="right") - 1, 0, n - 1)
    right_cell = jnp.clip(n - jnp.searchsorted(above[::-1], rest, side="right"), 0, n - 1)
    from_left = level < 0.5
    cell = jnp.where(from_left, left_cell, right_cell)
    inside = mass[cell] > 0
    safe = jnp.where(inside, mass[cell], 1)
    fraction = jnp.where(from_left, (level - below[cell]) / safe, 1 - (rest - above[cell + 1]) / safe)
    fraction = jnp.where(inside, jnp.clip(fraction, 0, 1), 0.5)
    return faces[cell] + width * fraction, jnp.where(inside, width / safe, 0)


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


def _stopped(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, tree)
