r"""How far rounding may have moved the value of an energy: what a comparison of two energies must forgive, and no more.

It has the units of the energy, so that a verdict does not depend on them.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._types import Scalar, State
from thalweg.energies import AbstractEnergy, Decomposition, decompose
from thalweg.states import GridDensity, moving


def value_and_size(energy: AbstractEnergy, state: State) -> tuple[Scalar, Scalar]:
    r"""The energy, and the sum of the sizes of what it is made of: a few units of rounding of that are noise.

    On a grid, $\sum|V_i|q_ih^d + T\sum(|q_i\log q_i| + q_i)h^d + \sum|e(q_i)|h^d$ and the sizes of the other terms.
    Elsewhere, the sizes of the terms and $\sum_k|x_k\,\partial_kF|$, since a coordinate is known to a rounding unit of
    itself: at the minimum of $|Ax - b|^2$ with a solution nothing else is left. (What a function loses inside of
    itself, such as $\cosh x - 1$, cannot be seen.)
    """
    if isinstance(state, GridDensity):
        return energy(state), _size_on_grid(energy, state)
    free = moving(state)
    value, slope = jax.value_and_grad(lambda part: energy(eqx.combine(part, state)))(free)
    along = jax.tree.map(lambda x, g: jnp.sum(jnp.abs(x * g)), _tree.floating(free), _tree.floating(slope))
    return value, terms_of(decompose(energy), state)[1].astype(value.dtype) + _tree.total(along).astype(value.dtype)


def terms_of(structure: Decomposition, state: State) -> tuple[Scalar, Scalar]:
    """The sum of the terms of an energy, and the sum of their sizes."""
    terms = structure.potential + structure.local + structure.interaction + structure.proximable + structure.remainder
    values = [term.energy(state) for term in terms]
    scales = [term.scale for term in terms]
    if structure.temperature is not None:
        values, scales = [*values, state.negative_entropy()], [*scales, structure.temperature]
    parts = jnp.stack([jnp.asarray(scale, value.dtype) * value for scale, value in zip(scales, values, strict=True)])
    return jnp.sum(parts), jnp.sum(jnp.abs(parts))


def _size_on_grid(energy: AbstractEnergy, state: GridDensity) -> Scalar:
    structure, q, volume = decompose(energy), state.values, state.grid.cell_volume
    scaled = lambda scale, sizes: jnp.abs(jnp.asarray(scale, q.dtype)) * jnp.sum(sizes) * volume  # noqa: E731
    size = jnp.zeros((), q.dtype)
    for term in structure.potential:
        # Where a potential is infinite there is no mass, or the energy is.
        size = size + scaled(term.scale, jnp.where(q > 0, jnp.abs(state.on_cells(term.function)) * q, 0))
    if structure.temperature is not None:
        logarithms = jnp.abs(jnp.log(jnp.where(q > 0, q, 1)))
        size = size + scaled(structure.temperature, q * (1 + logarithms))
    for term in structure.local:
        magnitude = lambda density, point, term=term: jnp.abs(term.function(density, point))  # noqa: E731
        size = size + scaled(term.scale, state.integrate(magnitude) / volume)
    for term in structure.interaction + structure.remainder:
        size = size + scaled(term.scale, jnp.abs(term.energy(state)) / volume)
    return size
