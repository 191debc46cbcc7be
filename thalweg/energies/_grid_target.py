"""A density on a grid as the distribution to reach."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from thalweg._types import Array, State
from thalweg.energies._local import require_grid
from thalweg.states import CellFunction, GridDensity
from thalweg.targets import Target


class GridTarget(eqx.Module):
    """A distribution known by its averages on the cells of a grid, for densities on the same cells; it stands where a
    [`thalweg.Target`][] may. Where it is zero its log density is minus infinity.
    """

    density: GridDensity

    @property
    def dim(self) -> int:
        """The dimension of the grid."""
        return self.density.dim

    @property
    def log_values(self) -> CellFunction:
        """The log density, as a function of a point."""
        values = self.density.values
        empty = values <= 0
        # Safe to differentiate by the target's values too.
        logs = jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1, values)))
        return CellFunction(logs, self.density.grid)

    @property
    def potential(self) -> CellFunction:
        r"""$V = -\log p$, infinite where there is no density."""
        return CellFunction(-self.log_values.values, self.density.grid)

    def log_density(self, point: Array) -> Array:
        """The log density of the cell in which a point lies."""
        return self.log_values(point)

    def on(self, state: State) -> Array:
        """The log density on the cells of a state; raise if it is no density on these cells."""
        require_grid(state, "A target that is a `tw.GridDensity`")
        return self.log_values.on(state.grid, "The target").astype(state.values.dtype)


def as_target(target: Any, name: str) -> Target | GridTarget:
    """The target of an energy; raise `ValueError` if it is none."""
    if isinstance(target, GridDensity):
        return GridTarget(target)
    if isinstance(target, Target | GridTarget):
        return target
    raise ValueError(
        f"`target` of {name} must be a `tw.Target(log_density, dim)` or a `tw.GridDensity`; "
        f"got {type(target).__name__}. (`tw.Samples` needs a flow that estimates the ratio.)"
    )
