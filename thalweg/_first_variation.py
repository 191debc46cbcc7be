r"""The one derivative: $\xi = \mathrm dF(x)$, by automatic differentiation of the discretised energy.

For every representation $\xi = \nabla F / \text{weights}$, where a cell weighs its volume, a particle its mass and
an entry of a vector 1. On a grid that is $\delta F/\delta q$ at the cells; at particles it is $\nabla\,\delta
F/\delta q\,(x_i)$.

At particles without a density model the entropy has no value. It is then left out of the derivative and kept beside
it as a *temperature*, so that it is never lost: whoever uses the cotangent must turn it into values or play it by
noise.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, PyTree, Scalar, State
from thalweg.energies import AbstractEnergy, as_energy, decompose
from thalweg.states import is_density, moving, quadrature_weights


class Cotangent(eqx.Module):
    r"""A first variation $\xi$, paired with velocities by $\langle\xi, v\rangle = \sum_i w_i\,\xi_i v_i$.

    `regular` has the tree structure of the state (`None` where a leaf does not move); `weights` are the quadrature
    weights; `temperature` is $T$ where an entropy $T\int q\log q$ is still symbolic, else `None`; `positive` says
    that the energy has a logarithmic part, whose flow keeps a density positive.
    """

    regular: PyTree
    weights: PyTree
    temperature: Array | float | None = None
    positive: bool = eqx.field(static=True, default=False)


class Velocity(eqx.Module):
    """A direction of motion: `tangent` in the coordinates of the state, and the `field` that moves mass, where there
    is one.

    `field` is the face fluxes on a grid, a map x → u(x) for states that must carry a density along, or `None` where
    the tangent says all.
    """

    tangent: PyTree
    field: PyTree = None


def energy_and_first_variation(energy: AbstractEnergy | Callable[..., Any], state: State) -> tuple[Scalar, Cotangent]:
    """The energy (less a symbolic entropy, if there is one) and its first variation, in one pass.

    Where the energy has proximable terms (corners, walls), it is the least subgradient, whose negative is the velocity
    of the flow; these terms are never differentiated.
    """
    energy = as_energy(energy)
    structure = decompose(energy)
    temperature = None
    if structure.proximable:
        value, cotangent = energy_and_first_variation(structure.smooth(), state)
        kinks = structure.joint_proximable(state)
        least = kinks.least_subgradient(moving(state), cotangent.regular)
        added = kinks(state)
        return value.astype(added.dtype) + added, Cotangent(least, cotangent.weights)
    if is_density(state) and not state.knows_density and structure.temperature is not None:
        temperature = structure.temperature
        energy = structure.without_entropy()
    free = moving(state)
    value, gradient = jax.value_and_grad(lambda part: energy(eqx.combine(part, state)))(free)
    weights = quadrature_weights(state)
    regular = jax.tree.map(lambda g, w: g / _tree.broadcast_weight(w, g), gradient, weights)
    return value, Cotangent(regular, weights, temperature, structure.needs_positive_density)


def first_variation(energy: AbstractEnergy | Callable[..., Any], state: State) -> Cotangent:
    r"""The first variation $\xi = \mathrm dF(x)$, defined by $\mathrm dF(x)[v] = \langle\xi, v\rangle$.

    **Arguments:** `energy`: any energy or function of the state; `state`: where.

    **Returns:** a [`thalweg.Cotangent`][]; `cotangent.regular` has the structure of the state.

    **Source:** Su (2023), the section on functionals.
    """
    return energy_and_first_variation(energy, state)[1]


def second_variation(energy: AbstractEnergy | Callable[..., Any], state: State, direction: PyTree) -> Cotangent:
    r"""The second variation applied to a direction, $\mathrm d^2F(x)[v, \cdot] = \langle\eta, \cdot\rangle$.

    With the same weights as the first variation, and without ever forming a matrix: $\eta = \tfrac{\mathrm
    d}{\mathrm d\varepsilon}\,\xi(x + \varepsilon v)$ at $\varepsilon = 0$. On a grid it is $\int\frac{\delta^2F}
    {\delta q(x)\delta q(y)}v(y)\,\mathrm dy$ at the cells; $\langle\eta, v\rangle$ is the second derivative of F along
    $x + \varepsilon v$. (At particles the weights are those of the state; they are not differentiated.)

    **Arguments:** `energy`: any energy or function of the state, twice differentiable there; `state`: where;
    `direction`: $v$, with the structure of the moving part of the state (a `tw.Velocity` gives its `tangent`); for a
    [`thalweg.GridDensity`][] also an array of the grid's shape.

    **Returns:** a [`thalweg.Cotangent`][]; `cotangent.regular` has the structure of the state.

    **Raises:** `UnsupportedCombination` if the energy has corners or walls; `ValueError` if the direction has another
    shape, or an entropy is symbolic (particles without a density model).
    """
    energy = as_energy(energy)
    structure = decompose(energy)
    if structure.proximable:
        raise UnsupportedCombination(
            f"`{type(structure.proximable[0].energy).__name__}` has corners or walls and no second variation.\n"
            "Leave it out: `second_variation` of the smooth part alone."
        )
    if structure.temperature is not None and is_density(state) and not state.knows_density:
        raise ValueError(
            "The entropy of particles without a density model is symbolic and has no second variation.\n"
            "Give the particles a density model, `tw.Particles(positions, density=tw.KernelDensity())`."
        )
    free = moving(state)
    direction = _as_direction(direction, free)
    slope = jax.grad(lambda part: energy(eqx.combine(part, state)))
    _, turned = jax.jvp(slope, (free,), (direction,))
    weights = quadrature_weights(state)
    regular = jax.tree.map(lambda g, w: g / _tree.broadcast_weight(w, g), turned, weights)
    return Cotangent(regular, weights, None, structure.needs_positive_density)


def _as_direction(direction: PyTree, free: PyTree) -> PyTree:
    """A direction with the structure, shapes and dtypes of the moving part of a state."""
    if isinstance(direction, Velocity):
        direction = direction.tangent
    leaves, tree = jax.tree.flatten(free)
    given = jax.tree.leaves(direction)
    shapes = [leaf.shape for leaf in leaves]
    if [jnp.shape(leaf) for leaf in given] != shapes:
        raise ValueError(
            f"`direction` must have the shapes of what moves in the state, {shapes}; got "
            f"{[jnp.shape(leaf) for leaf in given]}."
        )
    return jax.tree.unflatten(tree, [jnp.asarray(v, x.dtype) for v, x in zip(given, leaves, strict=True)])


def pairing(cotangent: Cotangent, velocity: Velocity) -> Scalar:
    r"""$\langle\xi, v\rangle$: the rate of change of the energy along a velocity.

    **Raises:** `ValueError` if an entropy is still symbolic in the cotangent, since its part of the rate is then
    unknown.
    """
    if cotangent.temperature is not None:
        raise ValueError(
            "The cotangent holds a symbolic entropy (particles without a density model), so its pairing has no value.\n"
            "Give the particles a density model, `tw.Particles(positions, density=tw.KernelDensity())`."
        )
    return _tree.weighted_dot(cotangent.weights, cotangent.regular, velocity.tangent)


def zero_velocity(state: State) -> Velocity:
    """The velocity of a state at rest."""
    return Velocity(jax.tree.map(jnp.zeros_like, moving(state)))
