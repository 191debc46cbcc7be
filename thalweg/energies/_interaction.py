"""Energies of pairs."""

from typing import Any

from thalweg._errors import UnsupportedCombination
from thalweg._types import Scalar, State
from thalweg.energies._base import AbstractEnergy
from thalweg.energies._local import require_grid
from thalweg.states import Gaussian


class InteractionEnergy(AbstractEnergy):
    r"""Interaction energy $F(q) = \tfrac12\iint W(x-y)\,\mathrm dq(x)\,\mathrm dq(y)$.

    In the Wasserstein geometry its flow is $\partial_t q = \nabla\cdot(q\,\nabla(W * q))$; each particle moves by
    $-\nabla (W*q)(x)$.

    **Arguments:** `interaction_kernel`: $W$, an even function of one displacement of shape `(dim,)` that returns a
    scalar (the energy sees the even part of any other); a member of `tw.kernels`, where $W$ may be singular at zero;
    or, for densities on a grid, an array of its values at the displacements of the cells, odd along each axis, with
    zero displacement in the middle. On a periodic axis the nearest image is meant.

    **Raises:** `ValueError` if an array of values is larger than the grid; `UnsupportedCombination` for a singular
    kernel, or an array, at a state without cells or particles.

    **Source:** Carrillo, McCann, Villani, *Kinetic equilibration rates for granular media*, Rev. Mat. Iberoam. 19
    (2003).
    """

    interaction_kernel: Any

    def __call__(self, state: State) -> Scalar:
        if not callable(self.interaction_kernel):
            require_grid(state, "An interaction kernel that is an array of values")
        elif hasattr(self.interaction_kernel, "cell_average") and isinstance(state, Gaussian):
            raise UnsupportedCombination(
                f"`{type(self.interaction_kernel).__name__}` has a corner or is infinite at zero, where the quadrature "
                "of a `Gaussian` is not accurate.\nUse a `tw.GridDensity` or `tw.Particles`."
            )
        return 0.5 * state.expect_pair(self.interaction_kernel)
