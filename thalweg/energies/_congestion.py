"""The hard constraint of crowds: a density below a ceiling."""

import jax.numpy as jnp

from thalweg._types import Scalar, ScalarLike, State
from thalweg.energies._base import AbstractEnergy
from thalweg.energies._local import require_grid


class Congestion(AbstractEnergy):
    r"""The constraint $0 \le q \le c$ of a density on a grid: zero where it holds (to rounding), else $+\infty$.

    It has no slope. Its Wasserstein flow, $\partial_t q = \nabla\cdot(q\nabla(\delta F/\delta q + \pi))$ with a
    pressure $\pi \ge 0$ that is zero where $q < c$, exists by its JKO steps, which is how a scheme must take it:
    `scheme=tw.Proximal(step_size)`. Any other scheme refuses it. It is the limit $m \to \infty$ of
    [`thalweg.PorousMedium`][].

    **Arguments:** `ceiling`: $c > 0$, in units of the density.

    **Raises:** `ValueError` if the ceiling is not positive; at the check of a flow if the domain cannot hold the mass
    under the ceiling or the start lies above it; `UnsupportedCombination` for other states and schemes.

    **Source:** Maury, Roudneff-Chupin, Santambrogio, *A macroscopic crowd motion model of gradient flow type*, Math.
    Models Methods Appl. Sci. 20 (2010).
    """

    ceiling: ScalarLike = 1.0

    def __check_init__(self) -> None:
        if isinstance(self.ceiling, int | float) and not self.ceiling > 0:
            raise ValueError(f"`ceiling` of `Congestion` must be positive; got {self.ceiling}.")

    def __call__(self, state: State) -> Scalar:
        require_grid(state, "`Congestion`")
        values = state.values
        rounding = 64 * float(jnp.finfo(values.dtype).eps)
        ceiling = jnp.asarray(self.ceiling, values.dtype)
        above = jnp.any((values > ceiling * (1 + rounding)) | (values < 0))
        return jnp.where(above, jnp.inf, jnp.zeros((), values.dtype))
