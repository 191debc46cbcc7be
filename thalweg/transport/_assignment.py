r"""The transport between particles: by sorting on the line, elsewhere by an exact assignment or linear program.

$$W_2^2 = \min_{\gamma \ge 0} \sum_{ij}\gamma_{ij}|x_i - y_j|^2, \sum_j\gamma_{ij} = w_i,\ \sum_i\gamma_{ij} = v_j.$$

The assignment and the linear program are SciPy's (a shortest augmenting path, and HiGHS) and run on the host. Which
pairs are optimal does not change under a small change of the particles, so with the pairs taken as constants
$\sum_k m_k|x_{i_k} - y_{j_k}|^2$ has the right derivative by the positions, and the potentials give it by the weights.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Scalar, ScalarLike
from thalweg.states import Particles
from thalweg.states._base import is_concrete
from thalweg.transport._distance import (
    Certificate,
    SparseCoupling,
    Transport,
    as_time,
    envelope,
    time_average,
    transport_between,
)
from thalweg.transport._sinkhorn import Sinkhorn

# An assignment of so many takes some ten seconds and its table of costs 128 MB.
_LARGEST_ASSIGNMENT = 4096
# A linear program with so many unknowns takes some ten seconds.
_LARGEST_PROGRAM = 250_000
# Rounds in which prices go from pair to pair; the assignment's own potentials are not handed out by SciPy.
_PRICE_ROUNDS = 400


class ParticleGeodesic(eqx.Module):
    """The displacement interpolation of particles: every pair goes straight from its start to its end.

    Where particles are split, there are as many particles as pairs.
    """

    coupling: SparseCoupling
    equal: bool = eqx.field(static=True)

    def __call__(self, time: ScalarLike) -> Particles:
        """The particles at a time between 0 and 1."""
        time = as_time(time, self.coupling.sources.dtype)
        positions = (1 - time) * self.coupling.sources + time * self.coupling.images
        return Particles(positions, None if self.equal else jnp.log(self.coupling.masses))

    def velocities(self, time: ScalarLike) -> Array:
        """The velocity of each particle: the derivative of its position, shape `(num_pairs, dim)`."""
        time = as_time(time, self.coupling.sources.dtype)
        return jax.jvp(lambda t: self(t).positions, (time,), (jnp.ones_like(time),))[1]

    def action(self) -> Scalar:
        r"""$\int_0^1\sum_k m_k|\dot x_k|^2\,\mathrm dt$."""
        masses = self.coupling.masses
        rate = lambda time: jnp.sum(masses * jnp.sum(self.velocities(time) ** 2, axis=1))  # noqa: E731
        return time_average(rate, masses.dtype)


class _Plan(eqx.Module):
    """Pairs, their masses, potentials that prove them optimal, and how they were found."""

    rows: Array
    columns: Array
    masses: Array
    phi: Array
    psi: Array
    method: str = eqx.field(static=True)


@transport_between.register
def _(a: Particles, b: Particles, solver: Any) -> Transport:
    if isinstance(solver, Sinkhorn):
        return solver.transport(a, b)
    if solver is not None:
        raise UnsupportedCombination(
            f"Between particles `solver` is `None` (exact) or `tw.Sinkhorn(epsilon)`; got `{type(solver).__name__}`."
        )
    same = a.log_weights is None and b.log_weights is None and a.num_particles == b.num_particles
    fixed = jax.lax.stop_gradient((a.positions, a.weights, b.positions, b.weights))
    if a.dim == 1:
        plan = _sorted(*fixed, same)
    else:
        plan = _on_the_host(*fixed, same)
    coupling = SparseCoupling(plan.rows, plan.columns, plan.masses, a.positions[plan.rows], b.positions[plan.columns])
    lengths = jnp.sum((coupling.sources - coupling.images) ** 2, axis=1)
    primal = jnp.sum(plan.masses * lengths)
    dual = jnp.sum(fixed[1] * plan.phi) + jnp.sum(fixed[3] * plan.psi)
    # The positions act through the pairs, the weights through the potentials.
    zero = jnp.zeros((), primal.dtype)
    distance_squared = primal + envelope(zero, (plan.phi, a.weights), (plan.psi, b.weights))
    images = jax.ops.segment_sum(plan.masses[:, None] * coupling.images, plan.rows, a.num_particles)
    return Transport(
        a,
        b,
        distance_squared,
        images / jnp.where(fixed[1] > 0, fixed[1], 1)[:, None],
        coupling,
        (plan.phi, plan.psi),
        Certificate(
            jax.lax.stop_gradient(primal),
            dual,
            "exact for these particles: the potentials are feasible, so W₂² lies between dual and primal",
        ),
        ParticleGeodesic(coupling, same),
        plan.method,
    )


@eqx.filter_jit
def _sorted(x: Array, w: Array, y: Array, v: Array, same: bool) -> _Plan:
    """The monotone coupling of particles on the line."""
    (x, y), (n, m) = (x[:, 0], y[:, 0]), (x.shape[0], y.shape[0])
    order_x, order_y = jnp.argsort(x), jnp.argsort(y)
    if same:
        rows, columns, masses = order_x, order_y, w
    else:
        below_x, below_y = jnp.cumsum(w[order_x]), jnp.cumsum(v[order_y])
        # Two totals of one that differ by rounding must not leave a last pair of rounding's mass.
        below_x, below_y = (below / below[-1] for below in (below_x, below_y))
        levels = jnp.sort(jnp.concatenate([below_x, below_y]))[:-1]
        masses = jnp.diff(jnp.concatenate([jnp.zeros((1,), levels.dtype), levels]))
        # A pair belongs to the first particles whose running weights reach its upper level.
        rows = order_x[jnp.clip(jnp.searchsorted(below_x, levels), 0, n - 1)]
        columns = order_y[jnp.clip(jnp.searchsorted(below_y, levels), 0, m - 1)]
    p, q = x[rows], y[columns]
    # φ' = 2(x − T(x)) along the straight lines from pair to pair, and ψ' = 2(y − S(y)) along the same lines.
    first = jnp.zeros((1,), p.dtype)

    def rise(z: Array, other: Array) -> Array:
        steps = jnp.diff(z) * (z[1:] + z[:-1] - other[1:] - other[:-1])
        return jnp.cumsum(jnp.concatenate([first, steps]))

    phi, psi = rise(p, q), rise(q, p) + (p[0] - q[0]) ** 2
    phi = jnp.zeros((n,), p.dtype).at[rows].set(phi)
    psi = jnp.zeros((m,), p.dtype).at[columns].set(psi)
    return _Plan(rows, columns, masses, phi, psi, "sorting")


def _on_the_host(x: Array, w: Array, y: Array, v: Array, same: bool) -> _Plan:
    n, m = x.shape[0], y.shape[0]
    if not is_concrete(x, w, y, v):
        raise ValueError(
            "The exact transport between particles off the line runs on the host, not inside `jax.jit`.\n"
            "Call it outside `jit` (`jax.grad` alone is fine) or with `solver=tw.Sinkhorn(epsilon)`."
        )
    if (same and n > _LARGEST_ASSIGNMENT) or (not same and n * m > _LARGEST_PROGRAM):
        most = f"{_LARGEST_ASSIGNMENT} particles" if same else f"{_LARGEST_PROGRAM} pairs"
        raise UnsupportedCombination(
            f"The exact transport of {n} particles to {m} is too large (at most {most}"
            f"{' of equal weights' if same else ' where weights or numbers differ'}).\n"
            "Use `solver=tw.Sinkhorn(epsilon)`, which reports its bias."
        )
    from scipy.spatial.distance import cdist

    cost = cdist(np.asarray(x, np.float64), np.asarray(y, np.float64), "sqeuclidean")
    weights = np.asarray(w, np.float64), np.asarray(v, np.float64)
    found = _assigned(cost) if same else _programmed(cost, *weights)
    rows, columns, masses, phi, psi, method = found
    as_array = lambda z: jnp.asarray(z, x.dtype)  # noqa: E731
    return _Plan(jnp.asarray(rows), jnp.asarray(columns), as_array(masses), as_array(phi), as_array(psi), method)


def _assigned(cost: np.ndarray) -> tuple[Any, ...]:
    from scipy.optimize import linear_sum_assignment

    n = cost.shape[0]
    rows, columns = linear_sum_assignment(cost)
    # Prices: φ_i = min_k (c_{iσ(k)} − c_{kσ(k)} + φ_k), a shortest path; it ends because the assignment is optimal.
    matched = cost[:, columns] - cost[rows, columns][None]
    phi = np.zeros(n)
    for _ in range(_PRICE_ROUNDS):
        lower = np.min(matched + phi[None], axis=1)
        if np.all(lower >= phi - 1e-15 * np.max(cost)):
            break
        phi = np.minimum(phi, lower)
    return rows, columns, np.full(n, 1 / n), *_feasible(cost, phi), "linear_sum_assignment"


def _programmed(cost: np.ndarray, w: np.ndarray, v: np.ndarray) -> tuple[Any, ...]:
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    (n, m), size = cost.shape, max(float(np.max(cost)), np.finfo(np.float64).tiny)
    marginals = vstack([kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))]).tocsr()
    # Rows and columns have one total; HiGHS must not see it differ by rounding.
    right = np.concatenate([w / w.sum(), v / v.sum()])
    found = linprog(cost.ravel() / size, A_eq=marginals, b_eq=right, bounds=(0, None), method="highs")
    if found.x is None:
        raise RuntimeError(f"The linear program of the transport was not solved: {found.message}")
    plan = found.x.reshape(n, m)
    rows, columns = np.nonzero(plan > 0)
    phi, psi = _feasible(cost, size * found.eqlin.marginals[:n])
    return rows, columns, plan[rows, columns], phi, psi, "linear program (HiGHS)"


def _feasible(cost: np.ndarray, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best potentials that can be made from one of them: feasible whatever it was."""
    psi = np.min(cost - phi[:, None], axis=0)
    return np.min(cost - psi[None], axis=1), psi
