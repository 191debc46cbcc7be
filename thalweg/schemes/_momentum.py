r"""Accelerated descent as a flow: a point with inertia that slides down the energy under friction.

The momentum $\pi$ is a cotangent that gathers first variations, and the point follows its steepest descent direction:
$\dot x = \operatorname{argmin}_v\langle\pi, v\rangle + \tfrac12\|v\|^2$, $\dot\pi = \xi(x) - \gamma(t)\,\pi$. In the
Euclidean norm this is $\ddot x + \gamma\dot x = -\nabla F$; in any norm $\dot x = \nabla k(-\pi)$ with the dual kinetic
energy $k(\pi) = \tfrac12\|\pi\|_*^2$, so that $H = F + k$ falls at the rate $\gamma\|\pi\|_*^2$: the two pairings
$\langle\xi, \dot x\rangle$ cancel, whatever the norm.

In an inner product $G(x)$ that changes with the point, $k(x, \pi) = \tfrac12\pi^\top G(x)^{-1}\pi$ has a slope in x
too, and the momentum feels it: $\dot\pi = \xi + \partial_x k - \gamma\pi$. This is $\nabla_{\dot x}\dot x +
\gamma\dot x = -G^{-1}\nabla F$ with the covariant derivative; again $\mathrm dH/\mathrm dt = -\gamma\|\pi\|_*^2$.

One step kicks over half the time, drifts over the whole, kicks again. Kick and friction are solved together, exactly,
for the gradient held fixed; so there is no limit on $\gamma$, and no singularity of $\gamma = r/t$ at $t = 0$. The
drift is free motion: a straight line, or a geodesic.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._first_variation import energy_and_first_variation, pairing
from thalweg._result import RESULTS
from thalweg._types import Count, PRNGKey, PyTree, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, BregmanMetric
from thalweg.geometries.fisher_rao import ParametricMetric
from thalweg.schemes._base import StepInfo, check_positive
from thalweg.schemes._damping import AbstractDamping, NesterovDamping
from thalweg.schemes._descent import descend
from thalweg.schemes._geodesic import drift
from thalweg.schemes._inertia import AbstractInertial, first_gradient, mean_of
from thalweg.schemes._restart import AbstractRestart, Moment


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


class Momentum(AbstractInertial):
    r"""Accelerated descent, $\nabla_{\dot x}\dot x + \gamma(t)\,\dot x = -\nabla F$: in the Euclidean norm $\ddot x +
    \gamma(t)\,\dot x = -\nabla F$; in any norm $\dot x = $ steepest descent of $\pi$, $\dot\pi = \xi(x) -
    \gamma(t)\,\pi$.

    The energy may rise on the way. What falls is $H = F + \tfrac12\|\pi\|_*^2$, at the rate $\gamma\|\pi\|_*^2$, in
    every norm; it is `path.energies + path.measurements["kinetic"]`. Each step is kick, drift, kick with exact
    friction, one gradient, and of second order in time where the dual norm squared is smooth; where it is not (1-,
    max- and spectral norm) the velocity jumps at ties and the order is lost. H falls up to third order in the step
    size; on a quadratic of largest curvature L at every step, if $\alpha \le 2.5\gamma/L$ and $\alpha \le
    1.4/\sqrt L$ (found numerically). The steps are stable for $\alpha < 2/\sqrt L$: the square of $\alpha$ is what a
    learning rate is elsewhere.

    For norms (vectors, pytrees, functions), particles in the Wasserstein geometry, and metrics that change with the
    point: [`thalweg.Riemannian`][], [`thalweg.Hessian`][], [`thalweg.FisherRao`][], Gaussians in the Wasserstein
    geometry. There a step follows a geodesic, in closed form (the densities) or solved for, in
    `path.measurements["geodesic_rounds"]` rounds; a step too long for that ends the run as
    `RESULTS.inner_solver_failed`.

    **Arguments:** `step_size`: $\alpha > 0$, in units of time; `damping`: $\gamma$, [`thalweg.NesterovDamping`][] or
    [`thalweg.ConstantDamping`][]; `restart`: `None`, [`thalweg.GradientRestart`][] or [`thalweg.SpeedRestart`][].

    **Source:** Su, Boyd, Candès, JMLR 17 (2016); Maddison, Paulin, Teh, O'Donoghue, Doucet, *Hamiltonian descent
    methods* (2018), for norms; França, Jordan, Vidal, J. Stat. Mech. (2021), for the splitting; Alimisis, Orvieto,
    Bécigneul, Lucchi, *A continuous-time perspective for modeling acceleration in Riemannian optimization* (2020).
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
        gradient = first_gradient(energy, state)
        at_rest = jax.tree.map(jnp.zeros_like, gradient)
        zero, none = jnp.zeros((), _tree.dtype_of(state)), jnp.asarray(0, jnp.int32)
        return MomentumMemory(at_rest, gradient, zero, none, zero, none)

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        alpha = jnp.asarray(self.step_size, memory.age.dtype)
        half = alpha / 2
        momentum = self._kicked(memory.momentum, memory.gradient, memory.age, half)
        # The gradient where a step begins is that where the last one ended: one gradient a step.
        motion = drift(geometry, state, momentum, alpha)
        moved, velocity = motion.state, motion.velocity
        value, cotangent = energy_and_first_variation(energy, moved)
        momentum = self._kicked(motion.momentum, cotangent.regular, memory.age + half, half)

        metric = geometry.at(moved)
        final, stats, result = descend(metric, eqx.tree_at(lambda c: c.regular, cotangent, momentum), value)
        kinetic = metric.norm_squared(final).astype(alpha.dtype) / 2
        # The trapezium of ⟨ξ, ẋ⟩ along the drift: what F itself lost, to third order.
        mean = mean_of(memory.gradient, cotangent.regular)
        dissipated = -alpha * pairing(eqx.tree_at(lambda c: c.regular, cotangent, mean), velocity)
        age, num_steps, restarts = memory.age + alpha, memory.num_steps + 1, memory.restarts
        if self.restart is not None:
            due = self.restart.is_due(Moment(pairing(cotangent, velocity), memory.kinetic, kinetic, num_steps))
            nothing = jax.tree.map(jnp.zeros_like, (momentum, age, num_steps, kinetic))
            momentum, age, num_steps, kinetic = _tree.where(due, nothing, (momentum, age, num_steps, kinetic))
            stats["restarts"] = restarts = restarts + due.astype(restarts.dtype)
        memory = MomentumMemory(momentum, cotangent.regular, age, num_steps, kinetic, restarts)
        stats["kinetic"] = kinetic
        if metric.is_riemannian:
            stats["geodesic_rounds"] = motion.num_rounds
        distance = alpha**2 * motion.speed_squared.astype(alpha.dtype)
        result = RESULTS.where(motion.converged, result, RESULTS.inner_solver_failed)
        result = RESULTS.where(jnp.isfinite(value), result, RESULTS.non_finite)
        return moved, memory, StepInfo(alpha, distance, dissipated, result, stats)

    def _kicked(self, momentum: PyTree, gradient: PyTree, age: Scalar, duration: Scalar) -> PyTree:
        factor, weight = self.damping.over(age, duration)
        return jax.tree.map(lambda p, g: factor.astype(p.dtype) * p + weight.astype(p.dtype) * g, momentum, gradient)

    def why_not(self, geometry: AbstractGeometry, state: State) -> str | None:
        metric = geometry.at(state)
        if metric.is_constant or metric.is_riemannian or metric.free_motion is not None:
            return None
        name, kind = type(geometry).__name__, type(state).__name__
        if isinstance(metric, BregmanMetric):
            other = ", or `geometry=tw.Hessian(h)`, which has the same metric" if metric.h.has_matrix else ""
            return (
                f"`Momentum` would take straight steps, and those may leave the domain of h of `{name}(h)`.\n"
                f"Use `scheme=tw.MirrorMomentum(step_size)`, which never leaves it{other}."
            )
        if isinstance(metric, ParametricMetric):
            return (
                "`Momentum` needs a definite Fisher matrix; with more parameters than observed numbers it is singular, "
                "and motion\nalong what changes nothing is not defined.\n"
                "Use `tw.FisherRao(damping=...)`, or `scheme=tw.Explicit(step_size)`, which leaves that at rest."
            )
        return (
            f"`Momentum` needs the geodesics of its metric; those of `{name}` at `{kind}` are not there.\n"
            "Use a norm, `tw.Riemannian`, `tw.Hessian`, `tw.FisherRao`, or particles or a Gaussian in "
            "`tw.Wasserstein()`;\nor `tw.Explicit(step_size, transform=optax.trace(0.9))`."
        )

    def describe(self) -> dict[str, str]:
        return {"what falls": "not the energy but energies + measurements['kinetic']"}
