r"""The gradient-flow ODE where the metric is one inner product $M$: exponentials of the curvature, then collocation.

The Hessian $H$ at the start of a substep and $M$ have a common basis, $B^\top M B = I$ and $B^\top H B = \Lambda$.
With $x = x_0 + Bw$ the flow $M\dot x = -\nabla F$ becomes

$$\dot w = \omega - \Lambda w + N(w), \qquad \omega = -B^\top\nabla F(x_0), \qquad N(w) = -B^\top\nabla F(x_0 + Bw) -
\omega + \Lambda w,$$

where $N$ is what the linearisation leaves over: it and its derivative vanish at $w = 0$. A polynomial $p \approx N$ in
time is integrated exactly against $e^{-t\Lambda}$, entry by entry, so no rate however fast limits the substep:

$$w(t) = t\,\varphi_1(-t\Lambda)\,\omega + \int_0^t e^{-(t-s)\Lambda}\,p(s)\,\mathrm ds, \qquad \varphi_k(-z) =
\int_0^1 e^{-(1-\theta)z}\,\frac{\theta^{k-1}}{(k-1)!}\,\mathrm d\theta.$$

`p` goes through $N$ at `_STAGES` nodes, which fixed-point sweeps find: each gains two orders, since $N$ is Lipschitz
with a constant of the size of the substep. Why this and not the explicit exponential Rosenbrock pairs of order 4 or 5
that the literature has, nor an implicit solver, is told with numbers in docs/stiff.md.
"""

from math import factorial
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from thalweg import _tree
from thalweg._first_variation import first_variation
from thalweg._result import RESULTS
from thalweg._types import Array, Scalar, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, Euclidean, FrobeniusNorm, FunctionMetric, NormedMetric
from thalweg.states import moving

_STAGES = 6
_SWEEPS = 3
# A substep may be this much longer than the last one: a transient that the last one did not feel is a decade away.
_GROWTH = 8.0
# The first substep, in units of the fastest rate: the size of what is not linear is then felt and never stepped over.
_FIRST = 0.1
# Rising directions (negative curvature) grow by at most e^20 in a substep; falling ones need no bound.
_LARGEST_RISE = 20.0
# Up to this z the functions φ are integrals by Gauss's rule (no cancellation, 24 points are exact to rounding), beyond
# it their recurrence is stable (it amplifies rounding by k/z a step).
_SMALL = 16.0


def _unit_gauss(count: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


_THETA, _THETA_WEIGHTS = _unit_gauss(24)


def _radau(count: int) -> np.ndarray:
    # The roots of P_s - P_{s-1}, moved to (0, 1]; the last is 1.
    series = np.zeros(count + 1)
    series[count], series[count - 1] = 1, -1
    nodes = (np.sort(np.polynomial.legendre.legroots(series).real) + 1) / 2
    nodes[-1] = 1.0
    return nodes


def _lagrange(nodes: np.ndarray, zeros: int) -> np.ndarray:
    """Row j: the coefficients of the polynomial that is 1 at node j, 0 at the others, and has `zeros` roots at 0."""
    rows = []
    for j, here in enumerate(nodes):
        row = np.ones(1)
        for other in np.delete(nodes, j):
            row = np.polynomial.polynomial.polymul(row, [-other / (here - other), 1 / (here - other)])
        rows.append(np.concatenate([np.zeros(zeros), row / here**zeros]))
    return np.stack(rows)


_NODES = _radau(_STAGES)
_BASIS, _BASIS_FROM_ZERO = _lagrange(_NODES, 0), _lagrange(_NODES, 1)


def phi_functions(z: Array, highest: int) -> Array:
    r"""$\varphi_k(-z)$ for k = 0, …, `highest`, along a new first axis; right to rounding for $z \ge -20$."""
    dtype = z.dtype
    small = z < _SMALL
    near, far = jnp.where(small, z, 0), jnp.where(small, 2 * _SMALL, z)
    powers = np.stack([_THETA_WEIGHTS * _THETA ** (k - 1) / factorial(k - 1) for k in range(1, highest + 1)])
    damped = jnp.exp(near[None] * _column(_THETA - 1, near, dtype))
    integrals = jnp.tensordot(jnp.asarray(powers, dtype), damped, 1)
    recurrence = [jnp.exp(-far)]
    for k in range(highest):
        recurrence.append((1 / factorial(k) - recurrence[-1]) / far)
    return jnp.concatenate([jnp.exp(-z)[None], jnp.where(small[None], integrals, jnp.stack(recurrence[1:]))])


def _column(values: np.ndarray, like: Array, dtype: Any) -> Array:
    return jnp.asarray(values, dtype).reshape((-1,) + (1,) * like.ndim)


def _memory_weights(ends: np.ndarray, basis: np.ndarray, z: Array) -> tuple[Array, Array]:
    r"""$\int_0^{c_i} e^{-(c_i-s)z}\ell_j(s)\,\mathrm ds$ for each end $c_i$ and row of the basis, shape `(ends, rows,
    n)`, and $c_i\varphi_1(-c_iz)$, shape `(ends, n)`.
    """
    degree = basis.shape[1] - 1
    phi = phi_functions(jnp.asarray(ends, z.dtype)[:, None] * z[None], degree + 1)
    powers = np.stack([factorial(k) * ends ** (k + 1) for k in range(degree + 1)])
    moments = jnp.asarray(powers, z.dtype)[:, :, None] * phi[1:]
    weights = jnp.einsum("jk,kin->ijn", jnp.asarray(basis, z.dtype), moments)
    return weights, moments[0]


def squared_speed(z: Array, start: Array, polynomial: Array) -> Scalar:
    r"""$\int_0^1|\dot w|^2\,\mathrm d\tau$ along the solution of $\dot w = \omega - zw + p(\tau)$, $w(0) = 0$.

    $\dot w = \sum_k b_k\tau^k\varphi_k(-\tau z)$ with $b_k = k!\,p_k$ and $\omega$ added to $b_0$. Where z is large
    that is an exponential and a polynomial, whose products have closed integrals, so that no layer is missed; where it
    is not, Gauss's rule is exact to rounding.

    **Arguments:** `z`: shape `(n,)`; `start`: $\omega$, shape `(n,)`; `polynomial`: $p_k$, shape `(degree + 1, n)`.
    """
    dtype = z.dtype
    count = polynomial.shape[0]
    factorials = jnp.asarray([float(factorial(k)) for k in range(count)], dtype)[:, None]
    b = (factorials * polynomial).at[0].add(start)
    small = z < _SMALL
    near, far = jnp.where(small, z, 0), jnp.where(small, 2 * _SMALL, z)
    tau, weights = jnp.asarray(_THETA, dtype)[:, None], jnp.asarray(_THETA_WEIGHTS, dtype)[:, None]
    phi = phi_functions(tau * near[None], count - 1)
    speed = sum(b[k][None] * tau**k * phi[k] for k in range(count))
    by_gauss = jnp.sum(weights * speed**2, axis=0)

    # τᵏφ_k = (τᵏ⁻¹/(k-1)! - τᵏ⁻¹φ_{k-1})/z: a polynomial part, and the exponential with factor (-1/z)ᵏ.
    exponential, rest = jnp.zeros_like(far), jnp.zeros((count, far.size), dtype)
    part = jnp.zeros((count, far.size), dtype)
    for k in range(count):
        exponential = exponential + b[k] * (-1 / far) ** k
        rest = rest + b[k][None] * part
        part = (-part).at[k].add(1 / factorial(k)) / far[None]
    decayed = jnp.exp(-far)
    moments = [(1 - decayed) / far]
    for k in range(1, count):
        moments.append((k * moments[-1] - decayed) / far)
    crossed = sum(rest[k] * moments[k] for k in range(count))
    smooth = sum(rest[k][None] * tau**k for k in range(count))
    closed = exponential**2 * (1 - decayed**2) / (2 * far) + 2 * exponential * crossed
    closed = closed + jnp.sum(weights * smooth**2, axis=0)
    return jnp.sum(jnp.where(small, by_gauss, closed))


class ExponentialRosenbrock(eqx.Module):
    r"""$\dot x = $ steepest descent at $x$, by exponential collocation about the linearisation at each substep's start.

    For a geometry that is one inner product for the whole space (`tw.Euclidean()`, `tw.Mahalanobis(...)`,
    `tw.L2()`), an energy that is twice differentiable, float64, and up to some hundreds of unknowns: a substep costs
    one Hessian, one symmetric eigendecomposition and 24 gradients. What is linear is solved exactly, so stiffness does
    not limit the substeps; the dissipated energy is the integral of $\|\dot x\|^2$ along the computed curve, in closed
    form where it decays fast, not the difference of energies.

    **Arguments:** `rtol`, `atol`: relative and absolute tolerance of a substep's error, entry by entry of the state;
    `max_steps`: of one interval.

    **Source:** Hochbruck, Ostermann, Schweitzer, *Exponential Rosenbrock-type methods*, SIAM J. Numer. Anal. 47 (2009);
    Hochbruck, Ostermann, *Exponential Runge–Kutta methods for parabolic problems*, Appl. Numer. Math. 53 (2005) for
    collocation.
    """

    rtol: float = eqx.field(static=True, default=1e-8)
    atol: float = eqx.field(static=True, default=1e-10)
    max_steps: int = eqx.field(static=True, default=4096)

    def __check_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise ValueError(
                "`rtol` and `atol` of `ExponentialRosenbrock` must not be negative, nor both zero; "
                f"got {self.rtol} and {self.atol}."
            )

    def first_substep(self, duration: Scalar) -> Scalar:
        """Zero: the first substep is chosen by the fastest rate at the start."""
        return jnp.zeros_like(duration)

    def why_unsupported(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> str | None:
        """Why this integrator cannot be used here, or `None`."""
        metric = geometry.at(state)
        if not isinstance(metric, NormedMetric | FunctionMetric) or metric.matrix is None:
            return f"`{type(geometry).__name__}` is not one inner product for the whole space"
        if any(leaf.dtype != jnp.float64 for leaf in jax.tree.leaves(moving(state))):
            return "the state is not in float64"
        flat, gradient, _ = _flattened(energy, state)
        try:
            jax.eval_shape(lambda x: jax.jvp(gradient, (x,), (x,))[1], flat)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0][:120]
            return f"the gradient of the energy has no forward derivative ({type(error).__name__}: {reason})"
        return None

    def advance(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, duration: Scalar, substep: Scalar
    ) -> tuple[State, Scalar, Scalar, Any, dict[str, Array]]:
        """The state after `duration`, the next substep, the energy dissipated, a result, and counts of substeps."""
        flat, gradient, unravel = _flattened(energy, state)
        whitening = _whitening(geometry, state, flat)
        duration = jnp.asarray(duration, flat.dtype)

        def body(carry: _Carry) -> _Carry:
            basis, rates, start = _linearised(gradient, whitening, carry.point)
            left = duration - carry.time
            fastest = jnp.maximum(jnp.max(jnp.abs(rates)), jnp.finfo(flat.dtype).tiny)
            tau = jnp.where(carry.substep > 0, carry.substep, _FIRST / fastest)
            tau = jnp.minimum(tau, _LARGEST_RISE / jnp.maximum(-jnp.min(rates), jnp.finfo(flat.dtype).tiny))
            wanted = jax.lax.stop_gradient(tau)
            # An interval must not end with a sliver.
            tau = jnp.where(left <= wanted * (1 + 1e-6), left, wanted)
            moved, dissipated, error, growth = self._substep(gradient, basis, rates, start, carry.point, tau)
            # Beyond a barrier the gradient of a logarithm is finite, so the energy is asked.
            inside = jnp.isfinite(energy(eqx.combine(unravel(moved), state)))
            accepted = (error <= 1) & inside
            following = tau * jnp.where(inside, growth, 0.1)
            # A substep that was cut by the end of the interval says little about how long the next may be.
            following = jnp.where(accepted & (tau < wanted), jnp.maximum(wanted, following), following)
            return _Carry(
                jnp.where(accepted, jnp.where(tau >= left, duration, carry.time + tau), carry.time),
                jax.lax.stop_gradient(following),
                jnp.where(accepted, moved, carry.point),
                carry.dissipated + jnp.where(accepted, dissipated, 0),
                carry.accepted + accepted.astype(jnp.int32),
                carry.rejected + (~accepted).astype(jnp.int32),
                ~accepted & (carry.time + following <= carry.time),
            )

        zero, none = jnp.zeros((), flat.dtype), jnp.asarray(0, jnp.int32)
        begin = _Carry(zero, jnp.asarray(substep, flat.dtype), flat, zero, none, none, jnp.asarray(False))
        last = eqxi.while_loop(
            lambda carry: (carry.time < duration) & ~carry.stuck & (carry.accepted + carry.rejected < self.max_steps),
            body,
            begin,
            max_steps=self.max_steps,
            kind="checkpointed",
        )
        result = RESULTS.where(last.time >= duration, RESULTS.successful, RESULTS.inner_solver_failed)
        moved = eqx.combine(unravel(last.point), state)
        counts = {"substeps": last.accepted + last.rejected, "rejected_substeps": last.rejected}
        return moved, last.substep, last.dissipated, result, counts

    def _substep(
        self, gradient: Any, basis: Array, rates: Array, start: Array, point: Array, tau: Scalar
    ) -> tuple[Array, Scalar, Scalar, Scalar]:
        """Where a substep ends, the energy that it dissipates, its error in units of the tolerance, and the factor to
        the next substep.
        """
        z = rates * tau
        weights, linear = _memory_weights(_NODES, _BASIS, z)
        other, _ = _memory_weights(_NODES[-1:], _BASIS_FROM_ZERO, z)
        linear = tau * linear * start[None]

        def remainder(curve: Array) -> Array:
            forces = -jax.vmap(gradient)(point[None] + curve @ basis.T) @ basis
            return forces - start[None] + rates[None] * curve

        def sweep(curve: Array, _: None) -> tuple[Array, None]:
            return linear + tau * jnp.einsum("ijn,jn->in", weights, remainder(curve)), None

        curve, _ = jax.lax.scan(sweep, linear, None, length=_SWEEPS)
        beyond = remainder(curve)
        end = linear[-1] + tau * jnp.einsum("jn,jn->n", weights[-1], beyond)
        moved = point + basis @ end
        polynomial = jnp.asarray(_BASIS_FROM_ZERO.T, z.dtype) @ beyond
        dissipated = tau * squared_speed(z, start, polynomial)

        # Where the substeps lie is no part of the derivative.
        frozen = jax.lax.stop_gradient
        scale = self.atol + self.rtol * jnp.maximum(jnp.abs(frozen(point)), jnp.abs(frozen(moved)))
        size = lambda change: jnp.sqrt(jnp.mean((frozen(basis @ change) / scale) ** 2))  # noqa: E731
        truncation = size(tau * jnp.einsum("jn,jn->n", weights[-1] - other[0], beyond))
        iteration = size(end - curve[-1])
        tiny = jnp.finfo(z.dtype).tiny
        growth = 0.9 * jnp.minimum(
            jnp.maximum(truncation, tiny) ** (-1 / (_STAGES + 1)),
            jnp.maximum(iteration, tiny) ** (-1 / (2 * _SWEEPS + 3)),
        )
        error = jnp.maximum(truncation, iteration)
        finite = jnp.isfinite(error) & jnp.isfinite(dissipated)
        return (
            moved,
            dissipated,
            jnp.where(finite, error, jnp.inf),
            jnp.where(finite, jnp.clip(growth, 0.05, _GROWTH), 0.1),
        )


class _Carry(eqx.Module):
    time: Scalar
    substep: Scalar
    point: Array
    dissipated: Scalar
    accepted: Array
    rejected: Array
    stuck: Array


def _flattened(energy: AbstractEnergy, state: State) -> tuple[Array, Any, Any]:
    """The moving numbers of a state end to end, the gradient of the energy in them, and the way back."""
    flat, unravel = ravel_pytree(moving(state))

    def gradient(x: Array) -> Array:
        cotangent = first_variation(energy, eqx.combine(unravel(x), state))
        weighted = jax.tree.map(lambda w, g: _tree.broadcast_weight(w, g) * g, cotangent.weights, cotangent.regular)
        return ravel_pytree(weighted)[0]

    return flat, gradient, unravel


def _whitening(geometry: AbstractGeometry, state: State, flat: Array) -> Array | None:
    r"""$L^{-1}$ where $M = LL^\top$; `None` where M is the identity."""
    if isinstance(geometry, Euclidean | FrobeniusNorm):
        return None
    metric = geometry.at(state)
    assert metric.matrix is not None
    factor = jnp.linalg.cholesky(metric.matrix().astype(flat.dtype))
    return solve_triangular(factor, jnp.eye(flat.size, dtype=flat.dtype), lower=True)


def _linearised(gradient: Any, whitening: Array | None, point: Array) -> tuple[Array, Array, Array]:
    r"""B, the diagonal of Λ, and ω at a point."""
    columns = jnp.eye(point.size, dtype=point.dtype)
    slope, product = jax.linearize(gradient, point)
    hessian = jax.vmap(product)(columns)
    hessian = 0.5 * (hessian + hessian.T)
    if whitening is not None:
        hessian = whitening @ hessian @ whitening.T
    # The basis is not differentiated: equal rates would make NaN, and the curve does not depend on it but for the error
    # of the substep, since N is whatever the linearisation leaves over.
    rates, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(hessian))
    basis = vectors if whitening is None else whitening.T @ vectors
    return basis, rates, -basis.T @ slope
