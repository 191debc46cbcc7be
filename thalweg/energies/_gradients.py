"""Energies of the gradient of a density on a grid: Dirichlet's, and the Fisher information."""

from typing import Any

import jax.numpy as jnp

from thalweg._types import Scalar, State
from thalweg.energies._base import AbstractEnergy
from thalweg.energies._grid_target import GridTarget, as_target
from thalweg.energies._local import require_grid
from thalweg.states import face_gradients, open_faces
from thalweg.targets import Target


class DirichletEnergy(AbstractEnergy):
    r"""Dirichlet's energy $F(q) = \tfrac12\int|\nabla q|^2\,\mathrm dx$ of a density on a grid.

    Its first variation is $-\Delta q$, with no flux through walls as the natural boundary condition. In the Wasserstein
    geometry its flow is the thin-film equation $\partial_t q = -\nabla\cdot(q\nabla\Delta q)$, in $L^2$ the heat
    equation.

    On the grid: half the sum over open faces of the squared difference quotients. Order 2; the value is of order 1
    where the normal derivative of $q$ is not zero at walls, since the half cells next to a wall have no face.

    **Raises:** `UnsupportedCombination` for any other state.

    **Source:** Otto, *Lubrication approximation with prescribed nonzero contact angle*, Comm. PDE 23 (1998).
    """

    def __call__(self, state: State) -> Scalar:
        require_grid(state, "`DirichletEnergy`")
        return 0.5 * jnp.sum(state.gradient_squared()) * state.grid.cell_volume


class FisherInformation(AbstractEnergy):
    r"""The Fisher information of a density on a grid, alone or relative to a target.

    $$F(q) = \int q\,|\nabla\log q|^2\,\mathrm dx = 4\int|\nabla\sqrt q|^2\,\mathrm dx, \qquad
    F(q) = \int q\,\Big|\nabla\log\frac qp\Big|^2\,\mathrm dx = 4\int p\,\Big|\nabla\sqrt{q/p}\Big|^2\,\mathrm dx.$$

    It is the dissipation rate of the entropy (of $\mathrm{KL}(q\|p)$) in the Wasserstein geometry, where its own flow
    is the quantum drift-diffusion equation. Its first variation is $-4\,\Delta\sqrt q/\sqrt q$, or with
    $s = \sqrt{q/p}$: $-4\,\nabla\cdot(p\nabla s)/(ps)$. It is $-\infty$ at vacuum next to mass, where here a density
    below the smallest number to the power 0.4 (1e-123) counts as that number.

    On the grid: the sum over open faces of the squared differences of square roots, with the geometric mean of $p$ on a
    face, so that an unnormalised target gives the same value and nothing is divided by a density. Order 2.

    **Arguments:** `target`: `None`, a [`thalweg.Target`][], or a [`thalweg.GridDensity`][] on the same cells. The faces
    of cells where $p = 0$ are walls, and mass in such a cell has infinite energy.

    **Raises:** `UnsupportedCombination` for a state that is no density on a grid.

    **Source:** Gianazza, Savaré, Toscani, *The Wasserstein gradient flow of the Fisher information and the quantum
    drift-diffusion equation*, Arch. Ration. Mech. Anal. 194 (2009).
    """

    target: Target | GridTarget | None

    def __init__(self, target: Any = None):
        self.target = None if target is None else as_target(target, "FisherInformation")

    def __call__(self, state: State) -> Scalar:
        require_grid(state, "`FisherInformation`")
        grid, values = state.grid, state.values
        least = float(jnp.finfo(values.dtype).tiny) ** 0.4
        # The square root has no slope at zero; that of a very small number stands in for it.
        vacuum = values < least
        root = jnp.where(vacuum, (values + least) / (2 * least**0.5), jnp.sqrt(jnp.where(vacuum, least, values)))
        root = root - jnp.where(vacuum & (values <= 0), 0.5 * least**0.5, 0)
        if self.target is None:
            slopes = face_gradients(root, grid)
            terms = [jnp.sum(slope**2) for slope in slopes]
            return 4 * sum(terms[1:], start=terms[0]) * grid.cell_volume
        log_target = (
            self.target.on(state) if isinstance(self.target, GridTarget) else state.on_cells(self.target.log_density)
        )
        wall = jnp.isneginf(log_target)
        log_target = jnp.where(wall, 0, log_target)
        total = jnp.zeros((), values.dtype)
        for axis in range(grid.dim):
            ahead = lambda array, axis=axis: jnp.roll(array, -1, axis)  # noqa: E731
            is_open = open_faces(grid, axis) & ~(wall | ahead(wall))
            # p̄ (√(q/p)' − √(q/p))², p̄ the geometric mean, is (√q' e^{-δ/4} − √q e^{δ/4})² with δ = log p' − log p.
            quarter = 0.25 * jnp.where(is_open, ahead(log_target) - log_target, 0)
            jump = ahead(root) * jnp.exp(-quarter) - root * jnp.exp(quarter)
            total = total + jnp.sum(jnp.where(is_open, jump, 0) ** 2) / grid.spacing[axis] ** 2
        in_wall = jnp.any(wall & (values > 0))
        return jnp.where(in_wall, jnp.inf, 4 * total * grid.cell_volume)
