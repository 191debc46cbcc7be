r"""Accelerated descent as a flow: a point with inertia that slides down the energy under friction.

The momentum $\pi$ is a cotangent that gathers first variations, and the point follows its steepest descent direction:
$\dot x = \operatorname{argmin}_v\langle\pi, v\rangle + \tfrac12\|v\|^2$, $\dot\pi = \xi(x) - \gamma(t)\,\pi$. In the
Euclidean norm this is $\ddot x + \gamma\dot x = -\nabla F$; in any norm $\dot x = \nabla k(-\pi)$ with the dual kinetic
energy $k(\pi) = \tfrac12\|\pi\|_*^2$, so that $H = F + k$ falls at the rate $\gamma\|\pi\|_*^2$: the two pairings
$\langle\xi, \dot x\rangle$ cancel, whatever the norm.

One step kicks over half the time, drifts over the whole, kicks again. Kick and friction are solved together, exactly,
for the gradient held fixed; so there is no limit on $\gamma$, and no singularity of $\gamma = r/t$ at $t = 0$.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._first_variation import Cotangent, energy_and_first_variation, pairing
from thalweg._types import Count, Flag, PRNGKey, PyTree, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, NormedMetric
from thalweg.geometries.wasserstein import ParticleMetric
from thalweg.schemes._base import AbstractScheme, StepInfo, check_positive, limited_step_size, outcome_at
from thalweg.states import quadrature_weights


class AbstractDamping(eqx.Module):
    r"""The friction $\gamma(t)$, by what it does over an interval."""

    @abc.abstractmethod
    def over(self, start: Scalar, duration: Scalar) -> tuple[Scalar, Scalar]:
        r"""For $\dot\pi = \xi - \gamma\pi$ with $\xi$ fixed: the factor $e^{-\int\gamma}$ of the old momentum, and the
        time $\int e^{-\int_s\gamma}\,\mathrm ds$ that the gradient counts for.
        """


class ConstantDamping(AbstractDamping):
    r"""The heavy ball, $\ddot x + \gamma\dot x = -\nabla F$.

    On a $\mu$-strongly convex quadratic $\gamma = 2\sqrt\mu$ is critical: $|x - x_*|$ falls like $t\,e^{-\sqrt\mu t}$,
    where gradient flow has $e^{-\mu t}$.

    **Arguments:** `gamma`: $\gamma > 0$, per unit of time.

    **Source:** Polyak, *Some methods of speeding up the convergence of iteration methods* (1964).
    """

    gamma: ScalarLike

    def __check_init__(self) -> None:
        check_positive(self.gamma, "gamma", "ConstantDamping")

    @classmethod
    def critical(cls, curvature: ScalarLike) -> "ConstantDamping":
        r"""$\gamma = 2\sqrt\mu$ for the smallest curvature $\mu > 0$ of the energy."""
        check_positive(curvature, "curvature", "ConstantDamping.critical")
        return cls(2 * curvature**0.5)

    def over(self, start: Scalar, duration: Scalar) -> tuple[Scalar, Scalar]:
        gamma = jnp.asarray(self.gamma, duration.dtype)
        return jnp.exp(-gamma * duration), -jnp.expm1(-gamma * duration) / gamma


class NesterovDamping(AbstractDamping):
    r"""The limit of Nesterov's method, $\ddot x + \tfrac rt\dot x = -\nabla F$.

    For convex F and $r \ge 3$ the error is at most $(r-1)^2|x_0 - x_*|^2/(2t^2)$ in the Euclidean norm, where gradient
    flow has $|x_0 - x_*|^2/(2t)$; for $r < 3$ it is only $O(t^{-2r/3})$. It asks for no constant of the energy.

    **Arguments:** `order`: $r > 0$, dimensionless.

    **Source:** Su, Boyd, Candès, JMLR 17 (2016), theorems 3 and 5; Attouch, Chbani, Riahi, ESAIM COCV 25 (2019).
    """

    order: ScalarLike = 3.0

    def __check_init__(self) -> None:
        check_positive(self.order, "order", "NesterovDamping")

    def over(self, start: Scalar, duration: Scalar) -> tuple[Scalar, Scalar]:
        # (t₀/t₁)^r and ∫ (s/t₁)^r ds, without cancellation where the duration is a small part of the time.
        order, end = jnp.asarray(self.order, duration.dtype), start + duration
        begun = start > 0
        log_ratio = jnp.log1p(-jnp.where(begun, duration / end, 0.5))
        factor = jnp.where(begun, jnp.exp(order * log_ratio), 0)
        weight = -end * jnp.expm1((order + 1) * log_ratio) / (order + 1)
        return factor, jnp.where(begun, weight, end / (order + 1))


class Moment(eqx.Module):
    r"""What a restart looks at after a step: the slope $\langle\xi, \dot x\rangle$ of the energy along the motion, the
    kinetic energy before and after, and the steps since the last restart.
    """

    slope: Scalar
    kinetic_before: Scalar
    kinetic_after: Scalar
    num_steps: Count


class AbstractRestart(eqx.Module):
    """When to stop the motion and begin again from rest."""

    @abc.abstractmethod
    def is_due(self, moment: Moment) -> Flag:
        """Whether the momentum is to be dropped after this step."""


class GradientRestart(AbstractRestart):
    r"""Begin again from rest as soon as the motion goes uphill, $\langle\xi, \dot x\rangle > 0$.

    **Source:** O'Donoghue, Candès, Found. Comput. Math. 15 (2015).
    """

    def is_due(self, moment: Moment) -> Flag:
        return moment.slope > 0


class SpeedRestart(AbstractRestart):
    r"""Begin again from rest as soon as the speed $\|\dot x\|$ falls.

    **Arguments:** `min_steps`: the fewest steps between two restarts.

    **Source:** Su, Boyd, Candès, JMLR 17 (2016), section 5.
    """

    min_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        if not isinstance(self.min_steps, int) or self.min_steps < 1:
            raise ValueError(f"`min_steps` of `SpeedRestart` must be a positive integer; got {self.min_steps!r}.")

    def is_due(self, moment: Moment) -> Flag:
        return (moment.kinetic_after < moment.kinetic_before) & (moment.num_steps >= self.min_steps)


class MomentumMemory(eqx.Module):
    """The momentum, the first variation where the last step ended, the time and the steps since the motion began, the
    kinetic energy, and how often it began again.
    """

    momentum: PyTree
    gradient: PyTree
    age: Scalar
    num_steps: Count
    kinetic: Scalar
    restarts: Count


class Momentum(AbstractScheme):
    r"""Accelerated descent, $\dot x = $ steepest descent of $\pi$, $\dot\pi = \xi(x) - \gamma(t)\,\pi$: in the
    Euclidean norm $\ddot x + \gamma(t)\,\dot x = -\nabla F$.

    The energy may rise on the way. What falls is $H = F + \tfrac12\|\pi\|_*^2$, at the rate $\gamma\|\pi\|_*^2$, in
    every norm; it is `path.energies + path.measurements["kinetic"]`. Each step is kick, drift, kick with exact
    friction, one gradient, and of second order in time where the dual norm squared is smooth; where it is not (1-,
    max- and spectral norm) the velocity jumps at ties and the order is lost. H falls up to third order in the step
    size; on a quadratic of largest curvature L at every step, if $\alpha \le 2.5\gamma/L$ and $\alpha \le
    1.4/\sqrt L$ (found numerically). The steps are stable for $\alpha < 2/\sqrt L$: the square of $\alpha$ is what a
    learning rate is elsewhere.

    Norms (vectors and pytrees) and particles in the Wasserstein geometry, whose metrics are the same everywhere.

    **Arguments:** `step_size`: $\alpha > 0$, in units of time; `damping`: $\gamma$, [`thalweg.NesterovDamping`][] or
    [`thalweg.ConstantDamping`][]; `restart`: `None`, [`thalweg.GradientRestart`][] or [`thalweg.SpeedRestart`][].

    **Source:** Su, Boyd, Candès, JMLR 17 (2016); Maddison, Paulin, Teh, O'Donoghue, Doucet, *Hamiltonian descent
    methods* (2018), for norms; França, Jordan, Vidal, J. Stat. Mech. (2021), for the splitting.
    """

    step_size: ScalarLike
    damping: AbstractDamping = NesterovDamping()
    restart: AbstractRestart | None = None

    def __check_init__(self) -> None:
        check_positive(self.step_size, "step_size", "Momentum")
        if not isinstance(self.damping, AbstractDamping):
            raise ValueError(
                "`damping` of `Momentum` must be `tw.NesterovDamping()` or `tw.ConstantDamping(gamma)`; "
                f"got {self.damping!r:.80}."
            )
        if self.restart is not None and not isinstance(self.restart, AbstractRestart):
            raise ValueError(
                "`restart` of `Momentum` must be `None`, `tw.GradientRestart()` or `tw.SpeedRestart()`; "
                f"got {self.restart!r:.80}."
            )

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        gradient = _gradient(energy, state)
        at_rest = jax.tree.map(jnp.zeros_like, gradient)
        zero, none = jnp.zeros((), _tree.dtype_of(state)), jnp.asarray(0, jnp.int32)
        return MomentumMemory(at_rest, gradient, zero, none, zero, none)

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        alpha = jnp.asarray(self.step_size, memory.age.dtype)
        half = alpha / 2
        metric = geometry.at(state)
        momentum = self._kicked(memory.momentum, memory.gradient, memory.age, half)
        # The gradient where a step begins is that where the last one ended: one gradient a step.
        velocity = metric.steepest_descent(Cotangent(momentum, quadrature_weights(state)))
        moved = metric.move(velocity, alpha)
        value, cotangent = energy_and_first_variation(energy, moved)
        momentum = self._kicked(momentum, cotangent.regular, memory.age + half, half)

        metric = geometry.at(moved)
        final = metric.steepest_descent(eqx.tree_at(lambda c: c.regular, cotangent, momentum))
        kinetic = metric.norm_squared(final).astype(alpha.dtype) / 2
        mean = jax.tree.map(lambda a, b: (a + b) / 2, memory.gradient, cotangent.regular)
        # The trapezium of ⟨ξ, ẋ⟩ along the drift: what F itself lost, to third order.
        dissipated = -alpha * pairing(eqx.tree_at(lambda c: c.regular, cotangent, mean), velocity)
        age, num_steps, restarts = memory.age + alpha, memory.num_steps + 1, memory.restarts
        stats: dict[str, Any] = {}
        if self.restart is not None:
            due = self.restart.is_due(Moment(pairing(cotangent, velocity), memory.kinetic, kinetic, num_steps))
            nothing = jax.tree.map(jnp.zeros_like, (momentum, age, num_steps, kinetic))
            momentum, age, num_steps, kinetic = _tree.where(due, nothing, (momentum, age, num_steps, kinetic))
            stats["restarts"] = restarts = restarts + due.astype(restarts.dtype)
        memory = MomentumMemory(momentum, cotangent.regular, age, num_steps, kinetic, restarts)
        stats["kinetic"] = kinetic
        distance = alpha**2 * metric.norm_squared(velocity)
        return moved, memory, StepInfo(alpha, distance, dissipated, outcome_at(value), stats)

    def _kicked(self, momentum: PyTree, gradient: PyTree, age: Scalar, duration: Scalar) -> PyTree:
        factor, weight = self.damping.over(age, duration)
        return jax.tree.map(lambda p, g: factor.astype(p.dtype) * p + weight.astype(p.dtype) * g, momentum, gradient)

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        metric = geometry.at(state)
        if not isinstance(metric, NormedMetric | ParticleMetric):
            raise UnsupportedCombination(
                f"`Momentum` needs a metric that is the same everywhere; that of `{type(geometry).__name__}` here "
                "changes with the point.\n"
                "Use a norm, or particles in `tw.Wasserstein()`; or `tw.Explicit(step_size, "
                "transform=optax.trace(0.9))`."
            )
        eqx.filter_eval_shape(
            lambda s: metric.steepest_descent(energy_and_first_variation(energy, s)[1]).tangent, state
        )

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "Momentum":
        return self

    def limit(self, remaining: Scalar) -> "Momentum":
        step_size = jnp.asarray(self.step_size, remaining.dtype)
        return eqx.tree_at(lambda s: s.step_size, self, limited_step_size(step_size, remaining))

    def describe(self) -> dict[str, str]:
        return {"what falls": "not the energy but energies + measurements['kinetic']"}


@eqx.filter_jit
def _gradient(energy: AbstractEnergy, state: State) -> PyTree:
    return energy_and_first_variation(energy, state)[1].regular
