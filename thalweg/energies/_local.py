"""Energies of densities whose density of energy at a point depends on the density at that point: potential and
internal energies.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Scalar, State
from thalweg.energies._base import AbstractEnergy
from thalweg.states import AbstractState, CellFunction, Grid, GridDensity


class PotentialEnergy(AbstractEnergy):
    r"""Potential energy $F(q) = \int V(x)\,\mathrm dq(x)$.

    In the Wasserstein geometry its flow moves each particle by $\dot x = -\nabla V(x)$.

    **Arguments:** `potential`: $V$, a function of one point of shape `(dim,)` that returns a scalar, or an array with
    one value for each cell of a grid, of the grid's shape. $V = +\infty$ is a wall; `grid`: the grid of an array of
    values (a density must have the same cells), else `None`.

    **Raises:** `ValueError` for an array without its grid, or of another shape; `UnsupportedCombination` if a potential
    of cell values meets a state that is no density on a grid.

    **Source:** Ambrosio, Gigli, Savaré, *Gradient Flows* (2008), example 9.3.1.
    """

    potential: Callable[..., Any]

    def __init__(self, potential: Any, grid: Grid | None = None):
        if not callable(potential):
            if grid is None:
                raise ValueError(
                    "`potential` of `PotentialEnergy` must be a function of one point, or an array of cell values "
                    f"together with its grid; got {type(potential).__name__}.\n"
                    "Write `tw.PotentialEnergy(values, grid)` for an array."
                )
            potential = CellFunction(jnp.asarray(potential), grid)
        self.potential = potential

    def __call__(self, state: State) -> Scalar:
        if isinstance(self.potential, CellFunction):
            require_grid(state, "A potential that is given by cell values")
        return state.expect(self.potential)


class Entropy(AbstractEnergy):
    r"""The (negative) Boltzmann entropy $F(q) = \int q\log q\,\mathrm dx$.

    In the Wasserstein geometry its flow is the heat equation $\partial_t q = \Delta q$. Particles without a density
    model cannot evaluate it: there it stays symbolic, and `tw.Langevin` plays it by noise.

    **Source:** Jordan, Kinderlehrer, Otto, *The variational formulation of the Fokker–Planck equation*, SIAM J.
    Math. Anal. 29 (1998).
    """

    def __call__(self, state: State) -> Scalar:
        return state.negative_entropy()


class InternalEnergy(AbstractEnergy):
    r"""Internal energy $F(q) = \int e(q(x))\,\mathrm dx$.

    In the Wasserstein geometry its flow is $\partial_t q = \nabla\cdot(q\,\nabla e'(q))$, a diffusion wherever $e$
    is convex.

    **Arguments:** `integrand`: $e$, a function of one density value that returns a scalar.

    **Source:** Ambrosio, Gigli, Savaré, *Gradient Flows* (2008), example 9.3.6.
    """

    integrand: Callable[..., Any]

    def __call__(self, state: State) -> Scalar:
        return state.integrate(lambda density, point: self.integrand(density))


class PorousMedium(AbstractEnergy):
    r"""Internal energy of a gas in a porous medium.

    $$F(q) = \frac{1}{m-1} \int q(x)^m \,\mathrm{d}x, \qquad m > 0,\ m \ne 1.$$

    In the Wasserstein geometry its flow is $\partial_t q = \Delta q^m$. For $m > 1$ the support spreads at finite
    speed, and from a point mass the solution is Barenblatt's profile; for $m < 1$ (fast diffusion) tails are fat. As
    $m \to 1$ it becomes, up to a constant, [`thalweg.Entropy`][].

    **Arguments:** `exponent`: $m$, dimensionless.

    **Raises:** `ValueError` if `exponent <= 0` or `exponent == 1`.

    **Source:** Otto, *The geometry of dissipative evolution equations*, Comm. PDE 26 (2001).
    """

    exponent: float

    def __check_init__(self) -> None:
        if isinstance(self.exponent, int | float) and (self.exponent <= 0 or self.exponent == 1):
            raise ValueError(
                f"`exponent` of `PorousMedium` must be positive and not 1; got {self.exponent}. Use "
                "`tw.Entropy()` for 1."
            )

    def integrand(self, density: Array) -> Array:
        """$q^m/(m-1)$."""
        # A negative density has no m-th power; explicit schemes may show one for a moment before they are stopped.
        return jnp.abs(density) ** self.exponent / (self.exponent - 1)

    def __call__(self, state: State) -> Scalar:
        return state.integrate(lambda density, point: self.integrand(density))


def require_grid(state: State, what: str) -> None:
    """Raise `UnsupportedCombination` unless the state is a density on a grid."""
    if not isinstance(state, GridDensity):
        raise UnsupportedCombination(
            f"{what} needs a density on a grid, a `tw.GridDensity`; got "
            f"{type(state).__name__ if isinstance(state, AbstractState) else 'a vector'}."
        )
