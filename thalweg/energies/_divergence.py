"""f-divergences between the state and a target."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thalweg import generators
from thalweg._types import Array, Scalar, State
from thalweg.energies._base import AbstractEnergy
from thalweg.targets import Target


class FDivergence(AbstractEnergy):
    r"""An f-divergence $F(q) = D_f(p\|q) = \int q\,f(p/q)\,\mathrm dx$ to a target $p$.

    In the Wasserstein geometry its flow is $\partial_t q = \nabla\cdot\left(q\,\nabla(f(r) - r f'(r))\right)$ with
    $r = p/q$; particles move by $\dot x = -\nabla(f(r) - r f'(r)) = w(r)\,\nabla\log r$, $w(r) = r^2 f''(r)$.

    For $f = -\log$ (see [`thalweg.KL`][]) an unnormalised target shifts the energy by a constant; for powers of $r$
    it rescales the energy and the time; every other generator needs a normalised target.

    A value of the density below 1e-123 (float32: 1e-15) counts as that value, so that empty cells have a slope; a
    divergence that is infinite there (forward KL, Pearson, Jeffreys) is then large.

    **Arguments:** `generator`: $f$, a member of `tw.generators` or any convex function with $f(1) = 0$; `target`: a
    [`thalweg.Target`][].

    **Raises:** `ValueError` if $f(1) \ne 0$ or $f$ is not convex.

    **Source:** Su, *Gradient flow: exploring the path to the minimum* (2023), the section on f-divergences.
    """

    generator: Callable[..., Any]
    target: Target

    def __check_init__(self) -> None:
        if not isinstance(self.target, Target):
            raise ValueError(
                "`target` of an f-divergence must be a `tw.Target(log_density, dim)`; "
                f"got {type(self.target).__name__}. (`tw.Samples` needs a flow that estimates the ratio.)"
            )
        generators.check_generator(self.generator)

    @property
    def is_reverse_kl(self) -> bool:
        """Whether $f = -\\log$, when the divergence is a potential energy plus an entropy."""
        return self.generator is generators.reverse_kl

    def integrand(self, density: Array, point: Array) -> Array:
        """$q f(p/q)$, from the logarithm of the ratio so that neither tail underflows by itself."""
        # An empty cell is taken as a very small number, where 0·f(∞) is near its limit; the square of the ratio must
        # not overflow, and the derivative by q is that of the very small number, not that of a constant.
        least = float(jnp.finfo(density.dtype).tiny) ** 0.4
        density = density + jax.lax.stop_gradient(jnp.maximum(density, least) - density)
        log_ratio = self.target.log_density(point).astype(density.dtype) - jnp.log(density)
        # r = 0 would make r log r, whose limit is 0, NaN.
        return density * self.generator(jnp.exp(jnp.maximum(log_ratio, math.log(least))))

    def __call__(self, state: State) -> Scalar:
        if self.is_reverse_kl:
            return state.expect(self.target.potential) + state.negative_entropy()
        return state.integrate(self.integrand)


def KL(target: Target) -> FDivergence:
    r"""The Kullback–Leibler divergence $F(q) = \mathrm{KL}(q\|p) = \int q\log(q/p)\,\mathrm dx$, up to $\log Z$ if
    $p$ is unnormalised.

    It is the f-divergence with $f = -\log$, equal to the potential energy of $V = -\log p$ plus the entropy. Its
    Wasserstein flow is the Fokker–Planck equation $\partial_t q = \nabla\cdot(q\nabla V) + \Delta q$, and with noise
    Langevin dynamics.

    **Arguments:** `target`: a [`thalweg.Target`][] with its log density known up to a constant.

    **Source:** Su (2023), the section on Langevin dynamics; Jordan, Kinderlehrer, Otto (1998).
    """
    return FDivergence(generators.reverse_kl, target)
