"""Energies of pairs."""

from collections.abc import Callable
from typing import Any

from thalweg._types import Scalar, State
from thalweg.energies._base import AbstractEnergy


class InteractionEnergy(AbstractEnergy):
    r"""Interaction energy $F(q) = \tfrac12\iint W(x-y)\,\mathrm dq(x)\,\mathrm dq(y)$.

    In the Wasserstein geometry its flow is $\partial_t q = \nabla\cdot(q\,\nabla(W * q))$; each particle moves by
    $-\nabla (W*q)(x)$.

    **Arguments:** `interaction_kernel`: $W$, an even function of one displacement of shape `(dim,)` that returns a
    scalar.

    **Source:** Carrillo, McCann, Villani, *Kinetic equilibration rates for granular media*, Rev. Mat. Iberoam. 19
    (2003).
    """

    interaction_kernel: Callable[..., Any]

    def __call__(self, state: State) -> Scalar:
        return 0.5 * state.expect_pair(self.interaction_kernel)
