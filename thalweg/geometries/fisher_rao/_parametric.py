"""The Fisher metric of a parametric family: the natural gradient."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Scalar, ScalarLike
from thalweg.geometries._base import AbstractMetric, Accuracy
from thalweg.geometries.fisher_rao._geometry import FisherRao, metric_at
from thalweg.geometries.fisher_rao._solvers import (
    DenseFisher,
    KernelFisher,
    choose_solver,
    dense_matrix,
    fisher_diagonal,
    solve,
)
from thalweg.states import Parametric


class ParametricMetric(AbstractMetric):
    r"""$\|\dot\theta\|^2 = \dot\theta^\top G\dot\theta$, $G =
    \nabla^2_{\theta'}\mathrm{KL}(p_\theta\|p_{\theta'})|_{\theta'=\theta}$, and $D = 2\,\mathrm{KL}$.

    Following the article, $D(\theta', \theta) = 2\,\mathrm{KL}(p_{\theta'}\|p_\theta)$; the factor makes
    $D/\varepsilon^2 \to \|\dot\theta\|^2$. Damping adds its own square to both.

    `form` is how linear systems are solved, [`thalweg.DenseFisher`][], [`thalweg.KernelFisher`][] or
    [`thalweg.MatrixFreeFisher`][], and `why` the reason.
    """

    state: Parametric
    damping: Any
    form: Any
    why: str = eqx.field(static=True)

    distance_kind = "local"

    def matrix(self) -> Array:
        """The Fisher matrix in flat coordinates, with the damping, shape `(d, d)`, whatever the form."""
        fisher = dense_matrix(self.state.family, self.state.params)
        return fisher + jnp.asarray(self.damping, fisher.dtype) * jnp.diag(jnp.diagonal(fisher))

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        return self.checked_descent(cotangent)[0]

    def checked_descent(self, cotangent: Cotangent) -> tuple[Velocity, Accuracy]:
        """The natural gradient, and how much of the gradient it leaves: what lies beyond the range of the matrix, or
        beyond the last product of a matrix-free form.
        """
        gradient, unravel = ravel_pytree(cotangent.regular.params)
        step, accuracy = solve(self.form, self.state.family, self.state.params, gradient, self.damping, self._undamped)
        return Velocity(eqx.tree_at(lambda s: s.params, cotangent.regular, unravel(-step))), accuracy

    @property
    def is_riemannian(self) -> bool:
        """Whether the matrix may be definite: with fewer observed numbers than parameters, damping makes it so."""
        family, params = self.state.family, self.state.params
        if not self._undamped or family.whiten is None:
            return True
        tangent = jax.tree.map(jnp.zeros_like, params)
        return jax.eval_shape(family.whiten, params, tangent).size >= ravel_pytree(params)[0].size

    def describe(self) -> dict[str, str]:
        return {"fisher matrix": self.why}

    def norm_squared(self, velocity: Velocity) -> Scalar:
        family, here, tangent = self.state.family, self.state.params, velocity.tangent.params
        if family.whiten is None:
            square = _tree.dot(tangent, family.fisher_product(here, tangent))
        else:
            square = jnp.sum(family.whiten(here, tangent) ** 2)
        return square if self._undamped else square + self._damping_square(tangent)

    def move(self, velocity: Velocity, scale: ScalarLike) -> Parametric:
        return self._moved(scale, velocity.tangent.params)

    def distance_squared(self, other: Parametric) -> Scalar:
        divergence = 2 * self.state.family.kl(other.params, self.state.params)
        if self._undamped:
            return divergence
        return divergence + self._damping_square(_tree.multiply_add(other.params, -1.0, self.state.params))

    def chart(self, coordinates: Any) -> Parametric:
        return self._moved(1.0, coordinates.params)

    @property
    def _undamped(self) -> bool:
        return isinstance(self.damping, int | float) and self.damping == 0

    def _damping_square(self, tangent: Any) -> Scalar:
        flat, _ = ravel_pytree(tangent)
        # A damped dense form has the matrix at hand, and the compiler makes it once.
        dense = isinstance(self.form, DenseFisher)
        family, here = self.state.family, self.state.params
        diagonal = jnp.diagonal(dense_matrix(family, here)) if dense else fisher_diagonal(family, here)
        return jnp.asarray(self.damping, flat.dtype) * jnp.sum(diagonal * flat**2)

    def _moved(self, scale: ScalarLike, direction: Any) -> Parametric:
        moved = _tree.multiply_add(self.state.params, scale, direction)
        return eqx.tree_at(lambda s: s.params, self.state, moved)


@metric_at.register
def _(state: Parametric, geometry: FisherRao) -> ParametricMetric:
    form, why = geometry.solver, f"given: {type(geometry.solver).__name__}"
    if form is None:
        form, why = choose_solver(state.family, state.params)
    if isinstance(form, KernelFisher) and state.family.whiten is None:
        raise ValueError(
            f"`KernelFisher` needs a family with a factor of its Fisher matrix; `{type(state.family).__name__}` states "
            "only its divergence.\nUse `solver=None`, `tw.DenseFisher()` or `tw.MatrixFreeFisher()`, or give it a "
            "`whiten`."
        )
    return ParametricMetric(state, geometry.damping, form, why)
