"""Any function of a density."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from thalweg._types import Scalar, State
from thalweg.energies._base import AbstractEnergy


class Functional(AbstractEnergy):
    r"""Any functional $F(q)$, written as a Python function of the state.

    Its first variation is found by automatic differentiation of what is written, so derivatives of $q$ and non-local
    terms are allowed. On a grid `state.gradient_squared()` and `state.face_gradients()` know the walls, the periodic
    axes and the mask: `lambda state: 0.5 * jnp.sum(state.gradient_squared()) * state.grid.cell_volume` is Dirichlet's
    energy, with the right first variation at every cell.

    **Arguments:** `functional`: a function of the state that returns a scalar.
    """

    functional: Callable[..., Any]

    def __call__(self, state: State) -> Scalar:
        return jnp.asarray(self.functional(state))
