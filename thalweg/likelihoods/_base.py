r"""Parametric families with one definition of the Fisher matrix: the Hessian of their Kullback–Leibler divergence.

$$G(\theta) = \nabla^2_{\theta'}
\,\mathrm{KL}\big(p(\cdot;\theta)\,\|\,p(\cdot;\theta')\big)\Big|_{\theta'=\theta}.$$

A family states its divergence; the matrix, the natural gradient and the distance follow from it. Where a family also
states a square root of the matrix as a linear map, `whiten(params, tangent)` with $|\mathrm{whiten}|^2 =
\dot\theta^\top G\,\dot\theta$, products with $G$ cost one forward and one backward pass, and no $d\times d$ matrix is
ever needed. The tests hold every such root to the definition.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._types import Array, PyTree, Scalar


class AbstractFamily(eqx.Module):
    r"""A family of distributions indexed by a pytree of parameters.

    Capabilities, `None` where absent: `whiten(params, tangent)`, linear in the tangent, an array of shape `(m,)` whose
    squared length is $\dot\theta^\top G\,\dot\theta$; `check(params, outputs)`, which raises `ValueError` if
    observations do not fit.
    """

    whiten: ClassVar[Callable[..., Any] | None] = None
    check: ClassVar[Callable[..., Any] | None] = None

    @abc.abstractmethod
    def kl(self, params: PyTree, other: PyTree) -> Scalar:
        r"""$\mathrm{KL}(p(\cdot;\theta)\,\|\,p(\cdot;\theta'))$ in closed form."""

    @abc.abstractmethod
    def log_density(self, params: PyTree, value: PyTree) -> Scalar:
        r"""$\log p(y;\theta)$ of one observation (a sum over entries where these are independent)."""

    @abc.abstractmethod
    def in_domain(self, params: PyTree) -> Array:
        """Whether the parameters name a member of the family, as a boolean array of shape `()`."""

    def fisher(self, params: PyTree) -> Array:
        r"""The Fisher matrix in flat coordinates (`ravel_pytree` order), shape `(d, d)`: $S^\top S$ where there is a
        factor, else the Hessian of the divergence by automatic differentiation.
        """
        factor = self.fisher_factor(params)
        return hessian_of_divergence(self, params) if factor is None else factor.T @ factor

    def fisher_factor(self, params: PyTree) -> Array | None:
        r"""$S$ with $S^\top S = G$ in flat coordinates (`ravel_pytree` order), shape `(m, d)`, or `None` where the
        family has no `whiten`.

        For a [`thalweg.likelihoods.Regression`][] $m$ is the count of numbers that its model returns (of a categorical
        with K classes, K for each observation), observation by observation. Where each row of the outputs provably
        depends on its own row of the inputs alone, the cost is one pass over the batch for each output *of a row*;
        else of `min(m, d)` passes over the batch.
        """
        return None if self.whiten is None else _factor(self, params)

    def fisher_product(self, params: PyTree, tangent: PyTree) -> PyTree:
        r"""$G\,\dot\theta$, with the structure of the parameters: one forward and one backward pass."""
        if self.whiten is not None:
            return fisher_square_root(self, params)[1](self.whiten(params, tangent))
        slope = lambda other: jax.grad(lambda o: self.kl(params, o))(other)  # noqa: E731
        return jax.jvp(slope, (params,), (tangent,))[1]


def fisher_square_root(family: AbstractFamily, params: PyTree) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`whiten` at these parameters and its transpose, `tangent -> (m,)` and `(m,) -> tangent`."""
    assert family.whiten is not None
    forward = lambda tangent: family.whiten(params, tangent)  # type: ignore[misc]  # noqa: E731
    zero = jax.tree.map(jnp.zeros_like, params)
    backward = jax.linear_transpose(forward, zero)
    return forward, lambda cotangent: backward(cotangent)[0]


def hessian_of_divergence(family: AbstractFamily, params: PyTree) -> Array:
    """The definition itself, shape `(d, d)`, by automatic differentiation."""
    flat, unravel = ravel_pytree(params)
    # The gradient of the divergence vanishes at equality, so this Hessian has no second derivatives of a model in it.
    return jax.hessian(lambda other: family.kl(params, unravel(other)))(flat)


def linear_matrix(forward: Callable[[Array], Array], like: Array) -> Array:
    """The matrix, shape `(m, d)`, of a linear map of flat arrays, by whichever of columns and rows is fewer."""
    rows = jax.eval_shape(forward, like).shape[0]
    if like.size <= rows:
        return jax.vmap(forward, out_axes=1)(jnp.eye(like.size, dtype=like.dtype))
    backward = jax.linear_transpose(forward, like)
    return jax.vmap(lambda row: backward(row)[0])(jnp.eye(rows, dtype=like.dtype))


class FactorRows(NamedTuple):
    """The rows of the factor, taken in groups: `block(i)` is the group `i < count`, shape `(each, d)`; `own` says that
    each group costs a pass over its own observation only.
    """

    block: Callable[[Array], Array]
    count: int
    each: int
    own: bool


def factor_rows(family: AbstractFamily, params: PyTree) -> FactorRows:
    """The rows of the factor, by observation where these can be taken one by one, else row by row. The order is that of
    `whiten`.
    """
    flat, unravel = ravel_pytree(params)
    one_by_one = family.row_whiten(params) if isinstance(family, AbstractRowwise) else None
    if one_by_one is None:
        forward = lambda tangent: family.whiten(params, unravel(tangent))  # type: ignore[misc]  # noqa: E731
        count = jax.eval_shape(forward, flat).shape[0]
        backward = jax.linear_transpose(forward, flat)
        unit = lambda i: (jnp.arange(count) == i).astype(flat.dtype)  # noqa: E731
        return FactorRows(lambda i: backward(unit(i))[0][None], count, 1, False)
    one_row, count = one_by_one
    each = jax.eval_shape(lambda t: one_row(jnp.asarray(0), unravel(t)), flat).shape[0]
    block = lambda i: linear_matrix(lambda tangent: one_row(i, unravel(tangent)), flat)  # noqa: E731
    return FactorRows(block, count, each, True)


def _factor(family: AbstractFamily, params: PyTree) -> Array:
    flat, unravel = ravel_pytree(params)
    rows = factor_rows(family, params)
    if not rows.own:
        return linear_matrix(lambda tangent: family.whiten(params, unravel(tangent)), flat)  # type: ignore[misc]
    return jax.vmap(rows.block)(jnp.arange(rows.count)).reshape(-1, flat.size)


class AbstractRowwise(AbstractFamily):
    """A family of many observations that share their parameters, each with rows of the factor of its own."""

    @abc.abstractmethod
    def row_whiten(self, params: PyTree) -> tuple[Callable[..., Any], int] | None:
        """`(i, tangent) -> (rows of S of observation i) · tangent` and the count of observations, or `None` where the
        observations cannot be taken one by one.
        """


class AbstractIndependent(AbstractFamily):
    """Independent observations, one for each entry of the parameters, all of one family.

    Every leaf of the parameters has shape `(*batch, *event)`: the leading axes count observations, the trailing ones
    (`events` gives their number) belong to one observation. Densities and divergences are summed over the batch.
    """

    events: ClassVar[dict[str, int] | int]
    """How many trailing axes of each parameter belong to one observation (one number: the parameters are one array)."""
    value_event: ClassVar[int] = 0
    """How many trailing axes of the values belong to one observation."""
    support: ClassVar[str]
    """Which values an observation can have, in words."""

    @abc.abstractmethod
    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        """The divergence of each observation, of the shape of the batch."""

    @abc.abstractmethod
    def log_density_each(self, params: PyTree, value: Array) -> Array:
        """The log density of each observation, of the shape of the batch."""

    @abc.abstractmethod
    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        r"""$R\,\dot\theta$ of each observation, where $R^\top R$ is its Fisher matrix: arrays whose leading axes are
        the batch.
        """

    @abc.abstractmethod
    def supports(self, params: PyTree, value: Any) -> Any:
        """Which observations (NumPy arrays, of the shape of the batch) the family can have made."""

    def kl(self, params: PyTree, other: PyTree) -> Scalar:
        return jnp.sum(self.kl_each(params, other))

    def log_density(self, params: PyTree, value: PyTree) -> Scalar:
        self._check_shapes(params, value)
        return jnp.sum(self.log_density_each(params, jnp.asarray(value)))

    def in_domain(self, params: PyTree) -> Array:
        # Parameters are natural or unconstrained: every finite number is inside.
        return _tree.all_finite(params)

    def whiten(self, params: PyTree, tangent: PyTree) -> Array:
        # Observation by observation along the first axis, so that rows taken one by one come in the same order.
        batch = self.batch_shape(params)
        first = batch[0] if batch else 1
        return jnp.ravel(jnp.concatenate([part.reshape(first, -1) for part in self.root(params, tangent)], 1))

    def check(self, params: PyTree, outputs: PyTree) -> None:
        """Raise `ValueError` if observations have the wrong shape, or one lies outside the support."""
        self._check_shapes(params, outputs)
        if _tree.is_traced(outputs):
            return
        value = np.asarray(outputs)
        good = np.broadcast_to(np.asarray(self.supports(params, value)), value.shape[: value.ndim - self.value_event])
        if not np.all(good):
            where: tuple[int, ...] = tuple(int(axis[0]) for axis in np.nonzero(~good))
            raise ValueError(
                f"`outputs` of `{type(self).__name__}` must be {self.support}; "
                f"got {np.array2string(value[where], precision=6, threshold=6)}"
                + (f" at index {where[0] if len(where) == 1 else where}." if len(where) else ".")
                + f"\n{int(np.sum(~good))} of {good.size} observations lie outside."
            )

    def batch_shape(self, params: PyTree) -> tuple[int, ...]:
        """The shape of the batch.

        **Raises:** `ValueError` if the parameters do not have the names and axes of the family.
        """
        name = type(self).__name__
        if isinstance(self.events, int):
            leaves, events = [params], [self.events]
            if not hasattr(params, "shape"):
                raise ValueError(f"The parameters of `{name}` are one array; got {_named(params)}.")
        else:
            given = sorted(params) if isinstance(params, dict) else _named(params)
            if given != sorted(self.events):
                raise ValueError(
                    f"The parameters of `{name}` are a dictionary of {sorted(self.events)}; got {given}.\n"
                    "A model for it must return that dictionary."
                )
            leaves, events = zip(*((params[key], count) for key, count in self.events.items()), strict=True)
        shapes = [leaf.shape for leaf in leaves]
        batches = {shape[: len(shape) - count] for shape, count in zip(shapes, events, strict=True)}
        if len(batches) != 1 or any(len(shape) < count for shape, count in zip(shapes, events, strict=True)):
            raise ValueError(f"The parameters of `{name}` must share their leading axes; got shapes {shapes}.")
        return batches.pop()

    def _check_shapes(self, params: PyTree, value: PyTree) -> None:
        batch = self.batch_shape(params)
        given = np.shape(value) if not hasattr(value, "shape") else tuple(value.shape)
        leading, wrong = given[: max(len(given) - self.value_event, 0)], len(given) < self.value_event
        if wrong or leading != batch:
            event = "" if self.value_event == 0 else f" followed by {self.value_event} axis of one observation"
            raise ValueError(
                "`outputs` must have the shape of what the family is given (the outputs of the model, or the "
                f"parameters of `{type(self).__name__}`):\n{batch}{event}; got {given}."
            )


def _named(value: Any) -> str:
    return f"an array of shape {value.shape}" if hasattr(value, "shape") else type(value).__name__
