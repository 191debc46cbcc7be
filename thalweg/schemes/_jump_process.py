r"""The linear Fokker–Planck equation on the cells of a grid, as a reversible jump process.

Between the two cells of each pair mass jumps at exponentially fitted rates $\lambda T B(\pm\Delta V/T)$, which balance
at the discrete Gibbs density $\pi \propto e^{-V/T}$. The pairs are neighbours along the axes, or those of
[`thalweg.geometries.wasserstein._tensor`][] where the mobility is a matrix.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, Scalar
from thalweg.energies import AbstractEnergy, decompose
from thalweg.geometries import AbstractGeometry
from thalweg.geometries.wasserstein import TensorMetric
from thalweg.geometries.wasserstein._means import fitted_coefficient
from thalweg.geometries.wasserstein._tensor import pairs_of
from thalweg.schemes._chebyshev import Links, SymmetricGenerator
from thalweg.schemes._fitted import linear_coefficients
from thalweg.states import GridDensity, shifted, shifted_back


class JumpProcess(NamedTuple):
    r"""Rates per time: `ahead`, from each cell to its partner, and `back`, from the partner to the cell, for each
    offset of `links`; `root`: $\sqrt\pi$, with its largest value one, zero outside of the domain.
    """

    links: Links
    ahead: tuple[Array, ...]
    back: tuple[Array, ...]
    root: Array

    def change(self, values: Array, potential: Array) -> tuple[Array, Scalar]:
        r"""$\partial_t q$, and the rate at which $\sum\xi q$ falls along it for a potential $\xi$ held fixed."""
        gained, rate = jnp.zeros_like(values), jnp.zeros((), values.dtype)
        for offset, ahead, back in zip(self.links.offsets, self.ahead, self.back, strict=True):
            flux = ahead * values - back * shifted(values, offset)
            gained = gained - flux + shifted_back(flux, offset)
            rate = rate + jnp.sum(flux * (potential - shifted(potential, offset)))
        return gained, rate

    def symmetric(self) -> SymmetricGenerator:
        r"""The generator in the variable $u = q/\sqrt\pi$."""
        diagonal, faces = jnp.zeros_like(self.root), []
        for offset, ahead, back in zip(self.links.offsets, self.ahead, self.back, strict=True):
            diagonal = diagonal + ahead + shifted_back(back, offset)
            # The geometric mean of the two rates; a root has no finite derivative where there is no pair.
            product = ahead * back
            joined = product > 0
            faces.append(jnp.where(joined, jnp.sqrt(jnp.where(joined, product, 1)), 0))
        return SymmetricGenerator(diagonal, tuple(faces))


def jump_process(energy: AbstractEnergy, geometry: AbstractGeometry, state: GridDensity) -> JumpProcess:
    """The process of a potential energy plus an entropy."""
    structure, grid, dtype = decompose(energy), state.grid, state.values.dtype
    periodic = tuple(grid.is_periodic(axis) for axis in range(grid.dim))
    potential, temperature = state.on_cells(structure.potential_value), jnp.asarray(structure.temperature, dtype)
    metric = geometry.at(state)
    if isinstance(metric, TensorMetric):
        offsets, found = pairs_of(metric.mobility, state)
        weights = tuple(jnp.asarray(weight) for weight in found)
        links = Links(offsets, periodic)
        drops = [shifted(potential, offset) - potential for offset in offsets]
        ahead = tuple(w * fitted_coefficient(d, temperature) for w, d in zip(weights, drops, strict=True))
        back = tuple(w * fitted_coefficient(-d, temperature) for w, d in zip(weights, drops, strict=True))
    else:
        links = Links.of_faces(periodic)
        faces = linear_coefficients(structure, state, getattr(geometry, "mobility", None))
        over = [1 / h**2 for h in grid.spacing]
        ahead = tuple(o * face.right for o, face in zip(over, faces, strict=True))
        back = tuple(o * face.left for o, face in zip(over, faces, strict=True))
    bounded = potential if grid.mask is None else jnp.where(grid.mask, potential, jnp.inf)
    lowest = jax.lax.stop_gradient(jnp.min(bounded))
    return JumpProcess(links, ahead, back, jnp.exp(-0.5 * (bounded - lowest) / temperature))
