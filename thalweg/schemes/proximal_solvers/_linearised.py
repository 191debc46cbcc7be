r"""The JKO step with the linearised Wasserstein distance, on finite volumes: for obstacles, rooms and crowds.

$$\min_{q,\,J}\ \frac\tau2\sum_{\text{faces}} h^d\,\frac{J^2}{q_{\text{up}}} + F(q), \qquad q - q_t +
\tau\,\nabla_h\cdot J = 0,$$

with the density upstream of the velocity $-\nabla_h\psi$ on each face. The sum is $D/2\tau$, where D is $W_2^2(q, q_t)$
to third order in the distance; it is convex and knows of walls. The minimiser is the saddle point

$$A(\psi)\,q = q_t, \qquad \psi_i + \frac\tau2\sum_j \Bigl(\frac{(\psi_i - \psi_j)^+}h\Bigr)^2 = \xi_i(q) - z_i + w_i,
\qquad z_i q_i = \mu,\ w_i (c - q_i) = \mu,$$

A the upwind transport matrix, z and w the pressures of the constraints $0 \le q \le c$, and $\mu \to 0$ (an interior
point method). The derivative of the second equation by ψ is the transpose of A. So with $H = \operatorname{diag}
(\partial_q\xi + z/q + w/(c - q))$, eliminating δq from Newton's equations leaves

$$(A H^{-1} A^\top + \tau L)\,\delta\psi = r,$$

L the Laplacian with the density upstream: symmetric and positive, solved by conjugate gradients. $AH^{-1}A^\top$ is
nearly an elliptic operator too (exactly so where mass moves along one axis), so one multigrid cycle preconditions the
whole.

**Source:** Cancès, Gallouët, Todeschi, *A variational finite volume scheme for Wasserstein gradient flows*, Numer.
Math. 146 (2020); Natale, Todeschi, *Computation of optimal transport with finite volumes*, ESAIM: M2AN 55 (2021), for
the interior point method.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Scalar
from thalweg.energies import AbstractEnergy, Decomposition, decompose
from thalweg.geometries import AbstractMetric
from thalweg.geometries.wasserstein._grid import GridMetric, is_proportional, neighbour, open_faces, relative_mobility
from thalweg.schemes._detached import detached
from thalweg.schemes._implicit_flux import nonlocal_variation
from thalweg.schemes.proximal_solvers._base import AbstractJKOSolver, JKOStep
from thalweg.schemes.proximal_solvers._saddle_derivative import saddle_point
from thalweg.states import GridDensity
from thalweg.transport._multigrid import Elliptic, Hierarchy, Transport, apply, conjugate_gradients, hierarchy, v_cycle

# Of the way to the nearest constraint that a step may go; what is kept of the mean complementarity; both usual.
_TO_THE_WALL = 0.98
_KEPT = 0.15
_MAX_LINEAR_STEPS = 200
# The share of the mass that tells how large δF/δq is, a little more than the standard deviation where it is normal.
# Half of that mass lies evenly: a start in a single cell has a scale too, and walls may fill half of the domain.
_TYPICAL = 0.75


class LinearisedJKO(AbstractJKOSolver):
    r"""The variational finite-volume JKO step: Newton's method with an interior point and multigrid.

    $q^+ = \operatorname{argmin}_q D(q, q_t)/2\tau + F(q)$ with the linearised Wasserstein distance $D(q, q_t) =
    \tau^2\int q\,|\nabla\psi|^2$, $q - q_t = \tau\nabla\cdot(q\nabla\psi)$, and the density upstream on each face.
    Any step size, any dimension, masks, a mobility $a(x)\,q$, and [`thalweg.Congestion`][]; positive and conservative.

    First order in space (upstream) and in time. D is $W_2^2$ to third order in the distance, so a step is the JKO step
    to the order of the scheme, not at large $\tau$: where mass spreads far beyond $q_t$ it is much less than $W_2^2$
    (by 30 to 40 % for a narrow normal density in a double well at $\tau = 0.1$). Interaction and `Functional` terms
    enter the derivative of F but not Newton's matrix: where they curve more than the local terms and the distance, the
    iteration may not converge, and says so.

    **Arguments:** `tolerance`: of the optimality residual, the largest of three: the $L^1$ error of the continuity
    equation (in units of the mass), and the mean errors of the equation of the potential and of the constraints'
    complementarity (in units of the spread of $\delta F/\delta q$ over three quarters of the mass at the start, half of
    it spread evenly: walls in fewer than half of the cells do not count); `max_steps`: of Newton's method.

    Where a minimiser to this tolerance lies above the start, by no more than the tolerance explains, the step stays at
    the start: it is the better of the two.

    `path.measurements` has the `residual`, the `newton_steps` and the `linear_steps`. Differentiable in both modes, by
    the linearised equations of the minimiser; as accurate as the tolerance.

    **Source:** Cancès, Gallouët, Todeschi (2020).
    """

    tolerance: float = eqx.field(static=True, default=1e-6)
    max_steps: int = eqx.field(static=True, default=100)

    takes_ceiling = True

    def why_unsupported(self, energy: AbstractEnergy, metric: AbstractMetric) -> str | None:
        if not isinstance(metric, GridMetric):
            return "`LinearisedJKO` takes the step of a `GridDensity` in the Wasserstein geometry; use `solver=None`."
        if decompose(energy).proximable:
            return "`LinearisedJKO` knows smooth energies and `Congestion`; leave out the other constraints."
        if not is_proportional(metric.mobility, metric.state):
            return "`LinearisedJKO` needs a mobility m(x, q) = a(x) q; use `scheme=tw.Continuous(step_size)`."
        return None

    def init(self, energy: AbstractEnergy, metric: AbstractMetric) -> Any:
        return None

    @property
    def distance_label(self) -> str:
        return "the linearised Wasserstein distance of finite volumes: W₂² for short ways, less for long ones"

    def solve(self, energy: AbstractEnergy, metric: AbstractMetric, step_size: Scalar, memory: Any) -> JKOStep:
        assert isinstance(metric, GridMetric)
        problem = _Problem.of(decompose(energy), metric, step_size)

        def newton(_: Array) -> _Start:
            begin = problem.start()
            scales = _Scales(begin.height, 0.1 * self.tolerance * problem.mean * begin.height)
            end = jax.lax.while_loop(
                lambda p: (p.residual > self.tolerance) & (p.count < self.max_steps),
                lambda p: _newton_step(problem, scales, p),
                begin.point,
            )
            return begin._replace(point=end)

        end, height = detached(newton, metric.state.values)
        values, distance = problem.finish(_differentiable(problem, end))
        moved = eqx.tree_at(lambda s: s.values, metric.state, values)
        converged = end.residual <= self.tolerance
        # Close to a minimum of F a minimiser to this tolerance may lie higher than the start itself, which is as
        # admissible; more than the tolerance explains is left for the certificate to find.
        excess = energy(moved) + distance / (2 * problem.tau) - energy(metric.state)
        explained = 10 * self.tolerance * height * jnp.sum(metric.state.values) * problem.volume
        stay = converged & (excess > 0) & (excess <= explained)
        # The derivative is that of the minimiser in both cases.
        back = jax.lax.stop_gradient(jnp.where(stay, metric.state.values - values, 0))
        moved = eqx.tree_at(lambda s: s.values, moved, jnp.where(stay, values + back, values))
        stats = {"newton_steps": end.count, "linear_steps": end.linear}
        distance = distance - jax.lax.stop_gradient(jnp.where(stay, distance, 0))
        return JKOStep(moved, distance, end.residual, converged, None, stats)


class _Point(NamedTuple):
    """Density, potential, the pressures of both constraints, the barrier μ, residuals (all; without complementarity)
    and counts.
    """

    values: Array
    potential: Array
    below: Array
    above: Array
    barrier: Scalar
    residual: Scalar
    equations: Scalar
    count: Count
    linear: Count


class _Start(NamedTuple):
    point: _Point
    height: Scalar


class _Scales(NamedTuple):
    """The spread of ξ, and the least μ."""

    height: Scalar
    floor: Scalar


class _System(NamedTuple):
    """Residuals of both equations; rates out of a cell through its faces, forward and backward; conductances of τL; the
    curvature of the local terms.
    """

    mass: Array
    dual: Array
    forward: tuple[Array, ...]
    backward: tuple[Array, ...]
    conductances: tuple[Array, ...]
    curvature: Array


class _Problem(eqx.Module):
    structure: Decomposition
    state: GridDensity
    tau: Scalar
    inside: Array
    rates: tuple[Array, ...]
    ceiling: Array
    bounded: bool = eqx.field(static=True)

    @classmethod
    def of(cls, structure: Decomposition, metric: GridMetric, step_size: Scalar) -> "_Problem":
        state, dtype = metric.state, metric.state.values.dtype
        grid, tau = state.grid, jnp.asarray(step_size, metric.state.values.dtype)
        inside = jnp.ones(grid.shape, bool) if grid.mask is None else jnp.asarray(grid.mask)
        ones = (jnp.ones((), dtype),) * grid.dim
        factors = ones if metric.mobility is None else relative_mobility(metric.mobility, state)
        rates = tuple(
            jnp.broadcast_to(factor * open_faces(grid, axis, dtype) * (tau / grid.spacing[axis] ** 2), grid.shape)
            for axis, factor in enumerate(factors)
        )
        bounded = structure.ceiling is not None
        ceiling = jnp.asarray(structure.ceiling if bounded else jnp.inf, dtype)
        return cls(structure, state, tau, inside, rates, ceiling, bounded)

    @property
    def volume(self) -> float:
        return self.state.grid.cell_volume

    @property
    def number(self) -> Scalar:
        return jnp.sum(self.inside).astype(self.tau.dtype)

    @property
    def mean(self) -> Scalar:
        return jnp.sum(self.state.values) / self.number

    def room(self, values: Array) -> Array:
        """What the ceiling leaves; one where there is none, when its pressure is zero."""
        return self.ceiling - values if self.bounded else jnp.ones_like(values)

    def local(self, density: Array, point: Array) -> Array:
        value = self.structure.local_value(density, point)
        if self.structure.temperature is None:
            return value
        return value + jnp.asarray(self.structure.temperature, density.dtype) * density * jnp.log(density)

    def on_cells(self, fn: Callable[..., Any], values: Array) -> Array:
        for _ in range(values.ndim):
            fn = jax.vmap(fn)
        return fn(values, self.state._centres())

    def variation(self, values: Array) -> Array:
        """ξ, without the pressures."""
        return nonlocal_variation(self.structure, self.state, values) + self.on_cells(jax.grad(self.local), values)

    def start(self) -> _Start:
        # Half of the mass evenly: inside of both constraints.
        before = self.state.values
        values = jnp.where(self.inside, 0.5 * (before + self.mean), 1)
        xi = jnp.where(self.inside, self.variation(values), 0)
        height = self.height(xi, jnp.where(self.inside, values, 0))
        barrier = 0.5 * self.mean * height
        below = jnp.where(self.inside, barrier / values, 0)
        above = jnp.where(self.inside, barrier / self.room(values), 0) if self.bounded else jnp.zeros_like(values)
        zero, none = jnp.zeros((), values.dtype), jnp.zeros((), jnp.int32)
        return _Start(
            _Point(values, jnp.zeros_like(values), below, above, barrier, zero + jnp.inf, zero, none, none), height
        )

    def height(self, xi: Array, weights: Array) -> Scalar:
        """How far ξ is from its median for all but a part of the mass: a few tall cells do not set the scale."""
        median = _quantile(xi, weights, 0.5)
        spread = _quantile(jnp.abs(xi - median), weights, _TYPICAL)
        # At rest everywhere nothing sets a scale but the digits of ξ, and what moves mass by a part of a cell.
        smallest = 1e-9 * min(self.state.grid.spacing) ** 2 / self.tau
        return jnp.maximum(spread, jnp.maximum(1e-6 * jnp.abs(median), smallest))

    def system(self, p: _Point) -> _System:
        mass, height = p.values - self.state.values, p.potential
        forward, backward, conductances = [], [], []
        for axis, rate in enumerate(self.rates):
            there = neighbour(p.values, axis)
            fall = p.potential - neighbour(p.potential, axis)
            up, down = jnp.maximum(fall, 0), jnp.maximum(-fall, 0)
            flux = rate * (up * p.values - down * there)
            mass = mass + flux - jnp.roll(flux, 1, axis)
            height = height + 0.5 * (rate * up**2 + jnp.roll(rate * down**2, 1, axis))
            forward.append(rate * up)
            backward.append(rate * down)
            upstream = jnp.where(fall > 0, p.values, jnp.where(fall < 0, there, 0.5 * (p.values + there)))
            conductances.append(rate * upstream)
        dual = height - self.variation(p.values) + p.below - p.above
        curvature = jnp.maximum(self.on_cells(jax.grad(jax.grad(self.local)), p.values), 0)
        inside = lambda x: jnp.where(self.inside, x, 0)  # noqa: E731
        return _System(inside(mass), inside(dual), tuple(forward), tuple(backward), tuple(conductances), curvature)

    def complementarity(self, p: _Point) -> Scalar:
        terms = p.values * p.below + (self.room(p.values) * p.above if self.bounded else 0)
        return jnp.sum(jnp.where(self.inside, terms, 0)) * self.volume

    def residuals(self, p: _Point, height: Scalar) -> Array:
        system = self.system(p)
        mass = jnp.sum(jnp.abs(system.mass)) * self.volume
        dual = jnp.sum(jnp.abs(system.dual) * p.values) * self.volume
        return jnp.stack([mass, dual / height, self.complementarity(p) / height])

    def finish(self, p: _Point) -> tuple[Array, Scalar]:
        """The density with its mass to rounding, below the ceiling still, and its squared distance."""
        before, values = self.state.values, jnp.where(self.inside, p.values, 0)
        lost = jnp.sum(before) - jnp.sum(values)
        room = jnp.where(self.inside, self.room(values), 0) if self.bounded else values
        fuller = values + lost * room / jnp.sum(room)
        values = jnp.where(lost > 0, fuller, values * (jnp.sum(before) / jnp.sum(values)))
        distance = jnp.zeros((), values.dtype)
        for axis, rate in enumerate(self.rates):
            fall = p.potential - neighbour(p.potential, axis)
            upstream = jnp.where(fall > 0, values, neighbour(values, axis))
            distance = distance + self.tau * jnp.sum(rate * upstream * fall**2) * self.volume
        return values, distance


def _quantile(numbers: Array, weights: Array, share: float) -> Scalar:
    """The least number such that those up to it have this share of the weight."""
    order = jnp.argsort(numbers.ravel())
    running = jnp.cumsum(weights.ravel()[order])
    return numbers.ravel()[order][jnp.argmax(running >= share * running[-1])]


def _newton_step(problem: _Problem, scales: _Scales, p: _Point) -> _Point:
    system, inside, room = problem.system(p), problem.inside, problem.room(p.values)
    constraints = 2 if problem.bounded else 1
    average = problem.complementarity(p) / (problem.number * problem.volume * constraints)
    # Lower, but not before the equations themselves hold as well.
    unsolved = jnp.minimum(0.3 * p.equations * problem.mean * scales.height, p.barrier)
    barrier = jnp.maximum(jnp.maximum(_KEPT * average, scales.floor), unsolved)
    # The pressures are eliminated, then the density.
    give = _give(problem, system, p)
    push = barrier / p.values - p.below - (barrier / room - p.above if problem.bounded else 0)
    dual = jnp.where(inside, -(system.dual + push), 0)
    potential_change, steps = _potential_change(problem, system, give, dual)
    change = give * (_transposed(system, potential_change) - dual)
    below = barrier / p.values - p.below - p.below / p.values * change
    above = barrier / room - p.above + p.above / room * change if problem.bounded else jnp.zeros_like(change)

    def longest(value: Array, change: Array) -> Scalar:
        down = inside & (change < 0)
        return jnp.min(jnp.where(down, -value / jnp.where(down, change, -1), jnp.inf))

    primal, pressures = longest(p.values, change), longest(p.below, below)
    if problem.bounded:
        primal, pressures = jnp.minimum(primal, longest(room, -change)), jnp.minimum(pressures, longest(p.above, above))
    primal, pressures = jnp.minimum(1, _TO_THE_WALL * primal), jnp.minimum(1, _TO_THE_WALL * pressures)

    def at(share: Scalar) -> _Point:
        return p._replace(
            values=p.values + share * primal * change,
            potential=p.potential + share * primal * potential_change,
            below=p.below + share * pressures * below,
            above=p.above + share * pressures * above,
        )

    # The kinks of the upstream density let the residual rise for a step; not much, or the step is shorter.
    shares = jnp.asarray([1.0, 0.5, 0.25, 0.1], p.values.dtype)
    residuals = jax.lax.map(lambda share: problem.residuals(at(share), scales.height), shares)
    sizes = jnp.sum(residuals, axis=1)
    good = sizes <= 10 * p.residual
    best = jnp.where(jnp.any(good), jnp.argmax(good), jnp.argmin(sizes))
    found = residuals[best]
    return at(shares[best])._replace(
        barrier=barrier,
        residual=jnp.max(found),
        equations=jnp.max(found[:2]),
        count=p.count + 1,
        linear=p.linear + steps,
    )


def _elliptic(problem: _Problem, system: _System, give: Array) -> tuple[Transport, Elliptic, Hierarchy]:
    r"""A, $\tau L$ and the levels of an elliptic operator near $AH^{-1}A^\top + \tau L$.

    With $\nu_{ij}$ the rate from i to j and $o_i = 1 + \sum_j\nu_{ij}$, a cell i contributes to
    $\langle\psi, AH^{-1}A^\top\psi\rangle$ the square $H_i^{-1}(\psi_i + \sum_j\nu_{ij}(\psi_i - \psi_j))^2$; with one
    j it is $H_i^{-1}(o_i\psi_i^2 - \nu_{ij}\psi_j^2 + \nu_{ij}o_i(\psi_i - \psi_j)^2)$.
    """
    carry = Transport(jnp.ones_like(give), system.forward, system.backward)
    diffuse = Elliptic(jnp.zeros_like(give), system.conductances)
    out = jnp.ones_like(give)
    for axis, (up, down) in enumerate(zip(system.forward, system.backward, strict=True)):
        out = out + up + jnp.roll(down, 1, axis)
    faces = tuple(
        k + give * out * up + neighbour(give * out, axis) * down
        for axis, (k, up, down) in enumerate(zip(system.conductances, system.forward, system.backward, strict=True))
    )
    diagonal = jnp.where(problem.inside, jnp.maximum(apply(carry, give), give), 0)
    levels = hierarchy(Elliptic(diagonal, faces), problem.state.grid.spacing)
    return carry, diffuse, levels


def _differentiable(problem: _Problem, end: _Point) -> _Point:
    """The same point, with the derivative of the saddle point."""

    def point(stacked: Array) -> _Point:
        values, potential = stacked
        # By complementarity, with μ as it is at the end.
        below = end.below * end.values / values
        above = end.above * problem.room(end.values) / problem.room(values)
        return end._replace(values=values, potential=potential, below=below, above=above)

    def equations(stacked: Array) -> Array:
        system = problem.system(point(stacked))
        return jnp.stack([system.dual, system.mass])

    def precondition(right: Array) -> Array:
        system = problem.system(end)
        give = _give(problem, system, end)
        carry, _, levels = _elliptic(problem, system, give)
        potential = v_cycle(levels, right[1] + apply(carry, give * right[0]))
        return jnp.stack([give * (_transposed(system, potential) - right[0]), potential])

    found = saddle_point(equations, jnp.stack([end.values, end.potential]), problem.inside, precondition)
    return point(found)


def _give(problem: _Problem, system: _System, p: _Point) -> Array:
    r"""The reciprocal of H, but for its nonlocal terms."""
    curvature = system.curvature + p.below / p.values + p.above / problem.room(p.values)
    return jnp.where(problem.inside, 1 / curvature, 0)


def _potential_change(problem: _Problem, system: _System, give: Array, dual: Array) -> tuple[Array, Count]:
    r"""$\delta\psi$."""
    carry, diffuse, levels = _elliptic(problem, system, give)

    def product(vector: Array) -> Array:
        return apply(carry, give * _transposed(system, vector)) + apply(diffuse, vector)

    right = apply(carry, give * dual) - system.mass
    goal = 1e-4 * jnp.sqrt(jnp.sum(right**2))
    return conjugate_gradients(product, lambda r: v_cycle(levels, r), right, goal, _MAX_LINEAR_STEPS)


def _transposed(system: _System, vector: Array) -> Array:
    """$A^\\top$ times a vector: what a cell's mass meets on its way."""
    result = vector
    for axis, (up, down) in enumerate(zip(system.forward, system.backward, strict=True)):
        fall = vector - neighbour(vector, axis)
        result = result + up * fall - jnp.roll(down * fall, 1, axis)
    return result
