"""Kernel distances to a target."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Scalar, State
from thalweg.energies._base import AbstractEnergy
from thalweg.kernels import even_part
from thalweg.states import CellFunction, GridDensity
from thalweg.targets import Samples, Target


class MaximumMeanDiscrepancy(AbstractEnergy):
    r"""Half the squared maximum mean discrepancy to a target $p$,

    $$F(q) = \tfrac12\,\mathrm{MMD}^2(q, p) = \tfrac12\iint k(x-y)\,\mathrm d(q-p)(x)\,\mathrm d(q-p)(y).$$

    Its first variation is the witness function $k*(q-p)$. On a grid the convolutions are taken by a fast Fourier
    transform on the doubled grid (periodic axes wrap).

    **Arguments:** `target`: a [`thalweg.GridDensity`][] on the same cells as the state; [`thalweg.Samples`][] (any
    density; a sum over the samples at every evaluation: put many of them on a grid first); or a normalisable
    [`thalweg.Target`][], which is put on the grid of the state; `kernel`: $k$, a function of one displacement that is
    even and positive definite (it is not checked), such as `tw.kernels.gaussian(bandwidth)`.

    **Raises:** `ValueError` if the target is none of these or lies on another grid; `UnsupportedCombination` where the
    state has no grid for the target.

    **Source:** Arbel, Korba, Salim, Gretton, *Maximum mean discrepancy gradient flow*, NeurIPS (2019), equation 3.
    """

    target: GridDensity | Samples | Target
    kernel: Any
    # −k * p, which no step changes.
    cell_potential: CellFunction | None

    def __init__(self, target: Any, kernel: Any):
        if not isinstance(target, GridDensity | Samples | Target):
            raise ValueError(
                "`target` of `MaximumMeanDiscrepancy` must be a `tw.GridDensity`, `tw.Samples(values)` or "
                f"`tw.Target(log_density, dim)`; got {type(target).__name__}."
            )
        self.target, self.kernel = target, even_part(kernel)
        self.cell_potential = None
        if isinstance(target, GridDensity):
            self.cell_potential = CellFunction(-target.convolve(self.kernel), target.grid)

    def potential(self) -> Callable[..., Any] | None:
        r"""$-k*p$ as a function of a point; `None` where it is known on the grid of a state only."""
        if isinstance(self.target, Samples):
            return _MeanKernel(self.target.values, self.kernel)
        return self.cell_potential

    def __call__(self, state: State) -> Scalar:
        if isinstance(self.target, Samples):
            _check_samples(self.target, state)
            mean = _MeanKernel(self.target.values, self.kernel)
            own = -jnp.mean(jax.lax.map(mean, self.target.values))
            pairs = 0.5 * state.expect_pair(self.kernel) + state.expect(mean)
            return pairs + 0.5 * own.astype(pairs.dtype)
        if not isinstance(state, GridDensity):
            raise UnsupportedCombination(
                f"`MaximumMeanDiscrepancy` to a `{type(self.target).__name__}` needs a density on a grid; got "
                f"{type(state).__name__}.\nGive draws of the target, `tw.Samples(values)`."
            )
        return 0.5 * self._difference(state).expect_pair(self.kernel)

    def _difference(self, state: GridDensity) -> GridDensity:
        target = self.target
        if isinstance(target, Target):
            target = GridDensity.from_log_density(target.log_density, state.grid)
        assert isinstance(target, GridDensity)
        values = CellFunction(target.values, target.grid).on(state.grid, "The target")
        return eqx.tree_at(lambda s: s.values, state, state.values - values.astype(state.values.dtype))


class _MeanKernel(eqx.Module):
    """Minus the mean of a kernel around samples, one sample at a time, so that memory is that of the points."""

    samples: Array
    kernel: Any

    def __call__(self, point: Array) -> Array:
        @jax.checkpoint
        def add(total: Array, sample: Array) -> tuple[Array, None]:
            return total + self.kernel(point - sample), None

        samples = self.samples.astype(point.dtype)
        total, _ = jax.lax.scan(add, jnp.zeros((), point.dtype), samples)
        return -total / samples.shape[0]


def _check_samples(target: Samples, state: State) -> None:
    if target.values.shape[-1] != state.dim:
        raise ValueError(
            f"The samples live in {target.values.shape[-1]} dimensions and `initial_state` in {state.dim}; they must "
            "agree."
        )
