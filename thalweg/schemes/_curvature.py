r"""Quadratic models of an energy: its value, slope and curvature at a point, in flat coordinates around it.

`SecondOrder` takes the Hessian itself. `GaussNewton` takes the Fisher matrix of a parametric family in its place: it
is never indefinite, it needs first derivatives of a model only, and where the model explains the data it is the Hessian
(for a normal likelihood it is Gauss and Newton's matrix $J^\top J$). It is kept as a factor $S$ with $S^\top S = F$,
whose singular values lose half as many digits as eigenvalues of the product.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Flag, Scalar, State
from thalweg.energies import AbstractEnergy, HalfDeviance, NegativeLogLikelihood
from thalweg.geometries import AbstractMetric
from thalweg.likelihoods import fisher_square_root
from thalweg.schemes._krylov import krylov_space
from thalweg.schemes._trust_region import Spectrum, along_newton, ascending
from thalweg.states import Parametric, moving

_PROBES = 4
# Up to here a decomposition of the Hessian costs as little as a factorisation.
_SMALL = 16
_LIKELIHOODS = (HalfDeviance, NegativeLogLikelihood)


class Scale(eqx.Module):
    """A root $L$ of the Gram matrix $G = LL^\\top$: a vector for a diagonal one, else a lower triangular matrix."""

    root: Array

    def divide(self, right: Array) -> Array:
        """$L^{-1}$ times a vector or matrix."""
        if self.root.ndim == 1:
            return right / (self.root if right.ndim == 1 else self.root[:, None])
        return solve_triangular(self.root, right, lower=True)

    def divide_transposed(self, right: Array) -> Array:
        """$L^{-\\top}$ times a vector."""
        if self.root.ndim == 1:
            return right / self.root
        return solve_triangular(self.root, right, lower=True, trans=1)

    def length(self, vector: Array) -> Scalar:
        """The length $\\|L^\\top v\\|$ of a vector in the metric."""
        return jnp.linalg.norm(self.root * vector if self.root.ndim == 1 else self.root.T @ vector)


class DenseModel(eqx.Module):
    """A model with a symmetric matrix of second derivatives."""

    value: Scalar
    gradient: Array
    hessian: Array

    def diagonal(self) -> Array:
        """A size of the curvature along each coordinate, positive where any second derivative is."""
        return _equilibrating(self.hessian)

    def spectrum(self, scale: Scale, descended: Scalar) -> Spectrum:
        del descended
        values, basis = jnp.linalg.eigh(self._scaled(scale))
        return ascending(values, basis.T @ scale.divide(self.gradient), basis)

    def newton(self, scale: Scale, radius: Scalar) -> tuple[Spectrum, Flag] | None:
        """The model along Newton's step, and whether that is all of it that is needed; `None` where the whole spectrum
        costs as little.
        """
        if self.gradient.shape[0] <= _SMALL:
            return None
        return along_newton(self._scaled(scale), scale.divide(self.gradient), radius)

    def _scaled(self, scale: Scale) -> Array:
        return scale.divide(scale.divide(self.hessian).T)


class FactoredModel(eqx.Module):
    """A model whose curvature is $S^\\top S$."""

    value: Scalar
    gradient: Array
    factor: Array
    bend: Callable[[Array], Array] | None = None
    largest_bend: float | None = eqx.field(static=True, default=None)

    def diagonal(self) -> Array:
        """The diagonal of the curvature."""
        return jnp.sum(self.factor**2, axis=0)

    def spectrum(self, scale: Scale, descended: Scalar) -> Spectrum:
        del descended
        scaled = scale.divide(self.factor.T).T
        if scaled.shape[0] > 2 * scaled.shape[1]:
            scaled = jnp.linalg.qr(scaled, mode="r")
        _, singular, basis = jnp.linalg.svd(scaled, full_matrices=False)
        values, basis = singular[::-1] ** 2, basis[::-1]
        return ascending(values, basis @ scale.divide(self.gradient), basis.T)


class MatrixFreeModel(eqx.Module):
    """A model known by products with its curvature."""

    value: Scalar
    gradient: Array
    product: Callable[[Array], Array]
    num_vectors: int = eqx.field(static=True)

    def diagonal(self) -> Array:
        """Sizes of the rows of the curvature, from its images of a few vectors of random signs: the mean square of
        $(Hz)_i$ is $\\sum_j H_{ij}^2$.
        """
        signs = jax.random.rademacher(jax.random.key(0), (_PROBES, *self.gradient.shape), self.gradient.dtype)
        return jnp.sqrt(jnp.mean(jax.lax.map(self.product, signs) ** 2, axis=0))

    def spectrum(self, scale: Scale, descended: Scalar) -> Spectrum:
        """In a Krylov space, larger the less is promised of what F has fallen by already (`descended`)."""
        slope = scale.divide(self.gradient)
        scaled = lambda v: scale.divide(self.product(scale.divide_transposed(v)))  # noqa: E731
        # Superlinear convergence needs a residual that falls with the slope; what F has fallen by makes it a pure
        # number, which no constant in F changes.
        promised = jnp.sum(slope**2)
        whole = jnp.maximum(promised + descended, jnp.finfo(slope.dtype).tiny)
        residual = jnp.clip(jnp.sqrt(promised / whole), 1e-10, 0.1)
        space = krylov_space(scaled, slope, self.num_vectors, residual)
        return ascending(space.values, space.slopes, space.basis)


class AbstractCurvature(eqx.Module):
    """Which second derivatives the quadratic model has."""

    @abc.abstractmethod
    def expand(self, energy: AbstractEnergy, metric: AbstractMetric) -> Any:
        """The model at the state of a metric, over its chart, with a matrix."""

    @abc.abstractmethod
    def products(self, energy: AbstractEnergy, metric: AbstractMetric, num_vectors: int) -> MatrixFreeModel:
        """The model at the state of a metric, over its chart, by products."""

    @abc.abstractmethod
    def check(self, energy: AbstractEnergy, state: State) -> None:
        """Raise `UnsupportedCombination` where there is no such curvature."""


class SecondOrder(AbstractCurvature):
    """The Hessian of the energy, by automatic differentiation: Newton's method."""

    def expand(self, energy: AbstractEnergy, metric: AbstractMetric) -> DenseModel:
        value, origin = over_chart(energy, metric)

        def slope(z: Array) -> tuple[Array, tuple[Scalar, Array]]:
            here, gradient = jax.value_and_grad(value)(z)
            return gradient, (here, gradient)

        hessian, (here, gradient) = jax.jacfwd(slope, has_aux=True)(origin)
        return DenseModel(here, gradient, 0.5 * (hessian + hessian.T))

    def products(self, energy: AbstractEnergy, metric: AbstractMetric, num_vectors: int) -> MatrixFreeModel:
        value, origin = over_chart(energy, metric)
        here, gradient = jax.value_and_grad(value)(origin)
        _, product = jax.linearize(jax.grad(value), origin)
        return MatrixFreeModel(here, gradient, product, num_vectors)

    def check(self, energy: AbstractEnergy, state: State) -> None:
        del energy, state


class GaussNewton(AbstractCurvature):
    r"""The Fisher matrix of a [`thalweg.Parametric`][] family, for its likelihood: Levenberg–Marquardt for a normal
    one.

    A model bends away from its tangent. Along a step d the whitened outputs r turn by $\tfrac12 r''(d, d)$, and the
    second-order correction $a = -\tfrac12(G/\alpha + S^\top S)^{-1}S^\top r''(d, d)$ (geodesic acceleration, for the
    price of a second directional derivative) follows them; a step that needs too much of it is taken shorter. Where
    the parameters outnumber the outputs there is no correction.

    **Arguments:** `largest_bend`: the largest $2\|a\|/\|d\|$; `None` for no correction.

    **Source:** Transtrum, Sethna, *Improvements to the Levenberg–Marquardt algorithm* (arXiv:1201.5885, 2012).
    """

    largest_bend: float | None = eqx.field(static=True, default=0.75)

    def expand(self, energy: AbstractEnergy, metric: AbstractMetric) -> DenseModel | FactoredModel:
        value, origin = over_chart(energy, metric)
        here, gradient = jax.value_and_grad(value)(origin)
        state = metric.state
        factor = state.family.fisher_factor(state.params)
        if factor is None:
            return DenseModel(here, gradient, state.family.fisher(state.params))
        # With fewer outputs than parameters a linear step can fit them all, and limiting its bend only slows it down.
        if self.largest_bend is None or factor.shape[0] < factor.shape[1]:
            return FactoredModel(here, gradient, factor)
        family, params = state.family, state.params
        _, unravel = ravel_pytree(params)

        def bend(displacement: Array) -> Array:
            along = unravel(displacement)
            turned = jax.jvp(lambda p: family.whiten(p, along), (params,), (along,))[1]
            return ravel_pytree(fisher_square_root(family, params)[1](turned))[0]

        return FactoredModel(here, gradient, factor, bend, self.largest_bend)

    def products(self, energy: AbstractEnergy, metric: AbstractMetric, num_vectors: int) -> MatrixFreeModel:
        value, origin = over_chart(energy, metric)
        here, gradient = jax.value_and_grad(value)(origin)
        family, params = metric.state.family, metric.state.params
        _, unravel = ravel_pytree(params)

        def product(vector: Array) -> Array:
            return ravel_pytree(family.fisher_product(params, unravel(vector)))[0]

        return MatrixFreeModel(here, gradient, product, num_vectors)

    def check(self, energy: AbstractEnergy, state: State) -> None:
        if not isinstance(state, Parametric) or not isinstance(energy, _LIKELIHOODS):
            raise UnsupportedCombination(
                "`GaussNewton` needs the Fisher matrix of a family: a `tw.Parametric` state and the energy "
                "`tw.HalfDeviance(outputs)` or `tw.NegativeLogLikelihood(outputs)`.\n"
                "Use `curvature=tw.SecondOrder()` for other energies."
            )


def over_chart(energy: AbstractEnergy, metric: AbstractMetric) -> tuple[Any, Array]:
    """The energy as a function of flat coordinates around the state, and the origin."""
    flat, unravel = ravel_pytree(moving(metric.state))
    assert metric.chart is not None
    chart = metric.chart
    return (lambda z: energy(chart(unravel(z)))), jnp.zeros_like(flat)


def _equilibrating(matrix: Array) -> Array:
    """$d$ such that $H_{ij}/\\sqrt{d_i d_j}$ has entries of at most about one (Ruiz, 2001); the diagonal where the
    matrix is positive definite, or nearly.
    """

    def once(_: Any, d: Array) -> Array:
        root = jnp.sqrt(d)
        largest = jnp.max(jnp.abs(matrix) / root[:, None] / root[None], axis=1)
        return jnp.where(largest > 0, d * largest, d)

    # From the diagonal on, every iterate scales as the coordinates do: a few are enough whatever the units.
    size = jnp.abs(jnp.diagonal(matrix))
    start = jnp.where(size > 0, size, 1)
    scaled = jax.lax.fori_loop(0, 6, once, start)
    return jnp.where(jnp.max(jnp.abs(matrix), axis=1) > 0, scaled, 0)
