"""f-divergences between the state and a target."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import generators
from thalweg._types import Array, Scalar, State
from thalweg.energies._base import AbstractEnergy
from thalweg.energies._grid_target import GridTarget, as_target
from thalweg.energies._perspective import perspective, perspective_value
from thalweg.targets import Target


class FDivergence(AbstractEnergy):
    r"""An f-divergence $F(q) = D_f(p\|q) = \int q\,f(p/q)\,\mathrm dx$ to a target $p$.

    In the Wasserstein geometry its flow is $\partial_t q = \nabla\cdot\left(q\,\nabla(f(r) - r f'(r))\right)$ with
    $r = p/q$; particles move by $\dot x = -\nabla(f(r) - r f'(r)) = w(r)\,\nabla\log r$, $w(r) = r^2 f''(r)$.

    For $f = -\log$ (see [`thalweg.KL`][]) an unnormalised target shifts the energy by a constant; for powers of $r$
    it rescales the energy and the time; every other generator needs a normalised target.

    The members of `tw.generators` are exact next to vacuum: the first variation $f(r) - rf'(r)$ has all its digits
    wherever it is below 1e123 (float32: 1e15), and is that large beyond; a divergence that is infinite at empty cells
    (forward KL, Pearson, Jeffreys) is then large. With any other $f$ a density below 1e-123 counts as that value.

    **Arguments:** `generator`: $f$, a member of `tw.generators` or any convex function with $f(1) = 0$; `target`: a
    [`thalweg.Target`][], or a [`thalweg.GridDensity`][] on the same cells as the state. Where the latter is zero and
    the state is not, divergences with $f(0) = \infty$ (reverse KL, Neyman, Jeffreys) are infinite; a flow refuses such
    a start.

    **Raises:** `ValueError` if $f(1) \ne 0$ or $f$ is not convex, or if the target lies on another grid.

    **Source:** Su, *Gradient flow: exploring the path to the minimum* (2023), the section on f-divergences.
    """

    generator: Callable[..., Any]
    target: Target | GridTarget = eqx.field(converter=lambda target: as_target(target, "an f-divergence"))

    def __check_init__(self) -> None:
        generators.check_generator(self.generator)

    @property
    def is_reverse_kl(self) -> bool:
        """Whether $f = -\\log$, when the divergence is a potential energy plus an entropy."""
        return self.generator is generators.reverse_kl

    def integrand(self, density: Array, point: Array) -> Array:
        """$q f(p/q)$, from the logarithm of the ratio so that neither tail underflows by itself."""
        return self.of_values(density, self.target.log_density(point).astype(density.dtype))

    def of_values(self, density: Array, log_target: Array) -> Array:
        """$q f(p/q)$ of a density value and a value of the log density of the target."""
        form = perspective(self.generator)
        if form is not None:
            return perspective_value(form, density, log_target)
        # An empty cell is taken as a very small number, where 0·f(∞) is near its limit; the square of the ratio must
        # not overflow, and the derivative by q is that of the very small number, not that of a constant.
        least = float(jnp.finfo(density.dtype).tiny) ** 0.4
        density = density + jax.lax.stop_gradient(jnp.maximum(density, least) - density)
        log_ratio = log_target - jnp.log(density)
        # r = 0 would make r log r, whose limit is 0, NaN.
        return density * self.generator(jnp.exp(jnp.maximum(log_ratio, math.log(least))))

    def __call__(self, state: State) -> Scalar:
        if isinstance(self.target, GridTarget):
            self.target.on(state)
        if self.is_reverse_kl:
            return state.expect(self.target.potential) + state.negative_entropy()
        return state.integrate(self.integrand)


def KL(target: Any) -> FDivergence:
    r"""The Kullback–Leibler divergence $F(q) = \mathrm{KL}(q\|p) = \int q\log(q/p)\,\mathrm dx$, up to $\log Z$ if
    $p$ is unnormalised.

    It is the f-divergence with $f = -\log$, equal to the potential energy of $V = -\log p$ plus the entropy. Its
    Wasserstein flow is the Fokker–Planck equation $\partial_t q = \nabla\cdot(q\nabla V) + \Delta q$, and with noise
    Langevin dynamics.

    **Arguments:** `target`: a [`thalweg.Target`][] with its log density known up to a constant, or a
    [`thalweg.GridDensity`][] on the same cells as the state.

    **Source:** Su (2023), the section on Langevin dynamics; Jordan, Kinderlehrer, Otto (1998).
    """
    return FDivergence(generators.reverse_kl, target)
