r"""The empirical Fisher matrix, under its own name: it is not the Fisher matrix.

$\hat G = \sum_n s_n s_n^\top$ with the scores $s_n = \nabla_\theta \log p(y_n;\theta)$ of the observations that were
made, where the Fisher matrix takes their expectation over the observations that the model would make. Written as a
family whose factor has the scores for rows, it is solved like the other.
"""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, PyTree, Scalar, ScalarLike, State
from thalweg.geometries._base import AbstractGeometry, AbstractMetric, Accuracy, unsupported_state
from thalweg.geometries.fisher_rao._solvers import choose_solver, dense_matrix, fisher_diagonal, solve
from thalweg.likelihoods import AbstractFamily, AbstractIndependent, AbstractRowwise, Regression, rows_are_independent
from thalweg.states import Parametric


class EmpiricalFisher(AbstractGeometry):
    r"""The empirical Fisher matrix $\sum_n s_n s_n^\top$ of the observed scores, as a geometry of a `Parametric` state.

    It is *not* the Fisher matrix, away from the optimum it is not even near it: a badly explained observation has a
    large score and *shortens* the step, and the matrix vanishes where the fit is perfect. Its steps are cheaper where
    scores are at hand, and that is all that speaks for it; making one raises a warning. Use [`thalweg.FisherRao`][].

    **Arguments:** `outputs`: the observations $y$; `damping`: added as `damping * diag`; `solver`: as of `FisherRao`.

    **Raises:** a `UserWarning` when made; `UnsupportedCombination` unless the family is one of independent observations
    or a `Regression` on one.

    **Source:** Kunstner, Balles, Hennig, *Limitations of the empirical Fisher approximation for natural gradient
    descent*, NeurIPS (2019).
    """

    outputs: PyTree
    damping: float = 0.0
    solver: Any = None

    def __check_init__(self) -> None:
        if isinstance(self.damping, int | float) and self.damping < 0:
            raise ValueError(f"`damping` of `EmpiricalFisher` must not be negative; got {self.damping}.")
        warnings.warn(
            "`EmpiricalFisher` is not the Fisher matrix: away from the optimum its steps depend on the residuals and "
            "are not natural gradients\n(Kunstner, Balles, Hennig, 2019). Use `tw.FisherRao()` unless you compare the "
            "two.",
            stacklevel=3,
        )

    def at(self, state: State, memory: Any = None) -> "EmpiricalMetric":
        del memory
        known = "a `Parametric` state of independent observations, or of a `Regression` on them"
        if not isinstance(state, Parametric):
            raise unsupported_state(self, state, [known])
        family = state.family.likelihood if isinstance(state.family, Regression) else state.family
        if not isinstance(family, AbstractIndependent):
            raise unsupported_state(self, state, [known])
        scores = _Scores(state.family, self.outputs)
        form, why = self.solver, f"given: {type(self.solver).__name__}"
        if form is None:
            form, why = choose_solver(scores, state.params)
        return EmpiricalMetric(state, scores, self.damping, form, why)


class EmpiricalMetric(AbstractMetric):
    r"""$\|\dot\theta\|^2 = \sum_n (s_n\cdot\dot\theta)^2$, with the damping. It has no distance of its own."""

    state: Parametric
    scores: AbstractFamily
    damping: Any
    form: Any
    why: str = eqx.field(static=True)

    def matrix(self) -> Array:
        """The empirical Fisher matrix in flat coordinates, with the damping, shape `(d, d)`."""
        matrix = dense_matrix(self.scores, self.state.params)
        return matrix + jnp.asarray(self.damping, matrix.dtype) * jnp.diag(jnp.diagonal(matrix))

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        return self.checked_descent(cotangent)[0]

    def checked_descent(self, cotangent: Cotangent) -> tuple[Velocity, Accuracy]:
        """Steepest descent, and how much of the gradient it leaves."""
        gradient, unravel = ravel_pytree(cotangent.regular.params)
        step, accuracy = solve(self.form, self.scores, self.state.params, gradient, self.damping, self._undamped)
        return Velocity(eqx.tree_at(lambda s: s.params, cotangent.regular, unravel(-step))), accuracy

    def describe(self) -> dict[str, str]:
        return {"empirical fisher matrix": self.why}

    def norm_squared(self, velocity: Velocity) -> Scalar:
        tangent = velocity.tangent.params
        square = jnp.sum(self.scores.whiten(self.state.params, tangent) ** 2)  # type: ignore[misc]
        if self._undamped:
            return square
        flat, _ = ravel_pytree(tangent)
        diagonal = fisher_diagonal(self.scores, self.state.params)
        return square + jnp.asarray(self.damping, flat.dtype) * jnp.sum(diagonal * flat**2)

    def move(self, velocity: Velocity, scale: ScalarLike) -> Parametric:
        moved = _tree.multiply_add(self.state.params, scale, velocity.tangent.params)
        return eqx.tree_at(lambda s: s.params, self.state, moved)

    @property
    def _undamped(self) -> bool:
        return isinstance(self.damping, int | float) and self.damping == 0


class _Scores(AbstractRowwise):
    """The family, with the scores of the observed data for the rows of its factor."""

    family: Any
    outputs: PyTree

    def kl(self, params: PyTree, other: PyTree) -> Scalar:
        return self.family.kl(params, other)

    def log_density(self, params: PyTree, value: PyTree) -> Scalar:
        return self.family.log_density(params, value)

    def in_domain(self, params: PyTree) -> Array:
        return self.family.in_domain(params)

    def whiten(self, params: PyTree, tangent: PyTree) -> Array:
        return jax.jvp(lambda p: _log_densities(self.family, p, self.outputs), (params,), (tangent,))[1]

    def row_whiten(self, params: PyTree) -> tuple[Callable[..., Any], int] | None:
        family = self.family
        if not isinstance(family, Regression) or jax.tree.leaves(eqx.filter(family.likelihood, eqx.is_array)):
            return None
        count = rows_are_independent(family.model, params, family.inputs)
        if count is None:
            return None

        def one_row(i: Array, tangent: PyTree) -> Array:
            cut = lambda leaf: jax.lax.dynamic_slice_in_dim(jnp.asarray(leaf), i, 1)  # noqa: E731
            row = Regression(family.model, jax.tree.map(cut, family.inputs), family.likelihood)
            outputs = jax.tree.map(cut, self.outputs)
            return jax.jvp(lambda p: _log_densities(row, p, outputs), (params,), (tangent,))[1]

        return one_row, count


def _log_densities(family: Any, params: PyTree, outputs: PyTree) -> Array:
    """The log density of each observation (each index of the leading axis), shape `(n,)`."""
    if isinstance(family, Regression):
        return _log_densities(family.likelihood, family.model(params, family.inputs), outputs)
    each = family.log_density_each(params, jnp.asarray(outputs))
    return jnp.sum(each.reshape(each.shape[0] if each.ndim else 1, -1), 1)
