"""Langevin steps: the entropy part of the energy is played by noise."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._errors import UnsupportedCombination
from thalweg._first_variation import Velocity, energy_and_first_variation
from thalweg._types import PRNGKey, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractGeometry
from thalweg.schemes._base import AbstractScheme, StepInfo, check_positive, limited_step_size, outcome_at
from thalweg.schemes._descent import check_descent


class Langevin(AbstractScheme):
    r"""Unadjusted Langevin: $x^+ = x + \alpha v_{\mathrm{rest}} + \sqrt{2T\alpha}\,\eta$, $\eta \sim N(0, G^{-1})$.

    $v_{\mathrm{rest}}$ is steepest descent of the energy less its entropy $T\int q\log q$, whose flow the noise
    plays exactly. For `tw.KL(target)` it is $x^+ = x + \alpha\nabla\log p(x) + \sqrt{2\alpha}\,\eta$.

    The stationary distribution is biased by $O(\alpha)$: in a Gaussian direction of precision $\lambda$ the variance
    is $(1/\lambda)/(1 - \alpha\lambda/2)$, and the steps diverge for $\alpha\lambda > 2$.

    **Arguments:** `step_size`: $\alpha > 0$, in units of time. The flow needs a `key`.

    Weak order one in time. **Source:** Su (2023), the section on Langevin dynamics; Roberts, Tweedie, Bernoulli 2
    (1996).
    """

    step_size: ScalarLike

    needs_key = True

    def __check_init__(self) -> None:
        check_positive(self.step_size, "step_size", "Langevin")

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        return None

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        structure = decompose(energy)
        metric = geometry.at(state)
        value, cotangent = energy_and_first_variation(structure.without_entropy(), state)
        drift = metric.steepest_descent(cotangent)
        rate = metric.norm_squared(drift)
        alpha = jnp.asarray(self.step_size, rate.dtype)
        assert metric.noise is not None  # `check` has seen to it
        spread = jnp.sqrt(2 * jnp.asarray(structure.temperature, alpha.dtype) * alpha)
        displacement = jax.tree.map(
            lambda v, eta: alpha.astype(v.dtype) * v + spread.astype(v.dtype) * eta,
            drift.tangent,
            metric.noise(key).tangent,
        )
        moved = metric.move(Velocity(displacement), 1.0)
        return moved, memory, StepInfo(alpha, alpha**2 * rate, alpha * rate, outcome_at(value), {})

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        structure = decompose(energy)
        metric = geometry.at(state)
        if metric.noise is None:
            raise UnsupportedCombination(
                f"`Langevin` needs a geometry with noise at {type(state).__name__}; {type(geometry).__name__} "
                "has none there.\n"
                "Use `state=tw.Particles(...)` with `geometry=tw.Wasserstein()`, or `scheme=tw.Continuous(step_size)`."
            )
        if structure.temperature is None:
            raise UnsupportedCombination(
                "`Langevin` plays the entropy of the energy by noise, but this energy has no entropy.\n"
                "Add one, `energy + temperature * tw.Entropy()`, or use `tw.KL(target)`; without noise use "
                "`tw.Explicit`."
            )
        if isinstance(structure.temperature, int | float) and structure.temperature < 0:
            raise ValueError(f"`Langevin` needs a non-negative temperature; the energy has {structure.temperature}.")
        check_descent(structure.without_entropy(), geometry, state)

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "Langevin":
        return self

    def limit(self, remaining: Scalar) -> "Langevin":
        step_size = limited_step_size(jnp.asarray(self.step_size, remaining.dtype), remaining)
        return eqx.tree_at(lambda s: s.step_size, self, step_size)

    def describe(self) -> dict[str, str]:
        return {"bias": "unadjusted: stationary moments are biased to first order in the step size"}
