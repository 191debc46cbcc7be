r"""Convex functions with a closed mirror map: entropies of positive numbers, of probabilities and of matrices, and the
p-norm.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import expm, solve_triangular

from thalweg import _tree
from thalweg._types import Array, Flag, PyTree, Scalar, ScalarLike
from thalweg.geometries.bregman._base import AbstractLegendre, everywhere, relative_entropy_term, total
from thalweg.geometries.norms._vectors import conjugate, p_norm

_map = jax.tree.map


class OrthantEntropy(AbstractLegendre):
    r"""$h(x) = \sum_i x_i\log x_i - x_i$ on positive numbers: steepest descent is $v_i = -x_i\xi_i$, the mirror step
    is $x_i e^{-\alpha\xi_i}$, and the divergence is the generalised Kullback–Leibler divergence.

    **Source:** Kivinen, Warmuth, *Exponentiated gradient versus gradient descent* (1997).
    """

    def value(self, point: PyTree) -> Scalar:
        return total(_map(lambda x: x * jnp.log(x) - x, point))

    def gradient(self, point: PyTree) -> PyTree:
        return _map(jnp.log, point)

    def conjugate_gradient(self, dual: PyTree, near: PyTree) -> PyTree:
        return _map(jnp.exp, dual)

    def apply_hessian(self, point: PyTree, tangent: PyTree) -> PyTree:
        return _map(lambda x, v: v / x, point, tangent)

    def solve_hessian(self, point: PyTree, cotangent: PyTree) -> PyTree:
        return _map(lambda x, g: x * g, point, cotangent)

    def divergence(self, other: PyTree, point: PyTree) -> Scalar:
        return total(_map(relative_entropy_term, other, point))

    def contains(self, point: PyTree) -> Flag:
        return everywhere(_map(lambda x: x > 0, point))

    def chart(self, point: PyTree, coordinates: PyTree) -> PyTree:
        return _map(lambda x, c: x * jnp.exp(c / x), point, coordinates)

    @property
    def domain(self) -> str:
        return "be positive in every entry"


class SimplexEntropy(AbstractLegendre):
    r"""$h(x) = \sum_i x_i\log x_i$ on probabilities, positive and of sum one along the last axis: steepest descent is
    $v_i = -x_i(\xi_i - \langle x, \xi\rangle)$ (the replicator equation), the mirror step is $x_i e^{-\alpha\xi_i}$,
    normalised, and the divergence is that of Kullback and Leibler.

    An array of several axes is a table of distributions, one for each row. The norm is one of tangents, whose sum is
    zero, so there is no matrix in the coordinates of the state.

    **Source:** Beck, Teboulle, *Mirror descent and nonlinear projected subgradient methods* (2003), section 5.
    """

    has_matrix = False

    def value(self, point: PyTree) -> Scalar:
        return total(_map(lambda x: x * jnp.log(x), point))

    def gradient(self, point: PyTree) -> PyTree:
        return _map(jnp.log, point)

    def conjugate_gradient(self, dual: PyTree, near: PyTree) -> PyTree:
        return _map(jax.nn.softmax, dual)

    def apply_hessian(self, point: PyTree, tangent: PyTree) -> PyTree:
        return _map(lambda x, v: v / x, point, tangent)

    def solve_hessian(self, point: PyTree, cotangent: PyTree) -> PyTree:
        return _map(lambda x, g: x * (g - jnp.sum(x * g, axis=-1, keepdims=True)), point, cotangent)

    def divergence(self, other: PyTree, point: PyTree) -> Scalar:
        return total(_map(relative_entropy_term, other, point))

    def contains(self, point: PyTree) -> Flag:
        # Steps of an ODE solver keep the sum to its tolerance.
        near_one = lambda x: jnp.abs(jnp.sum(x, axis=-1) - 1) <= 10 * jnp.finfo(x.dtype).eps ** 0.5  # noqa: E731
        return everywhere(_map(lambda x: jnp.all(x > 0) & jnp.all(near_one(x)), point))

    def chart(self, point: PyTree, coordinates: PyTree) -> PyTree:
        return _map(lambda x, c: jax.nn.softmax(jnp.log(x) + c / x), point, coordinates)

    @property
    def domain(self) -> str:
        return "be positive and sum to one along its last axis"


class BurgEntropy(AbstractLegendre):
    r"""$h(x) = -\sum_i\log x_i$ on positive numbers: steepest descent is $v_i = -x_i^2\xi_i$, the mirror step is
    $x_i/(1 + \alpha x_i\xi_i)$, and the divergence is that of Itakura and Saito.

    The mirror map has the negative numbers as its range, so a step with $\alpha x_i\xi_i \le -1$ has no end point: the
    run stops with `RESULTS.left_domain`.

    **Source:** Banerjee et al., *Clustering with Bregman divergences* (2005), table 1.
    """

    def value(self, point: PyTree) -> Scalar:
        return -total(_map(jnp.log, point))

    def gradient(self, point: PyTree) -> PyTree:
        return _map(lambda x: -1 / x, point)

    def conjugate_gradient(self, dual: PyTree, near: PyTree) -> PyTree:
        return _map(lambda theta: -1 / theta, dual)

    def apply_hessian(self, point: PyTree, tangent: PyTree) -> PyTree:
        return _map(lambda x, v: v / x**2, point, tangent)

    def solve_hessian(self, point: PyTree, cotangent: PyTree) -> PyTree:
        return _map(lambda x, g: x**2 * g, point, cotangent)

    def divergence(self, other: PyTree, point: PyTree) -> Scalar:
        def term(y: Array, x: Array) -> Array:
            ratio = y / x - 1
            inside = ratio > -1
            safe = jnp.where(inside, ratio, 0)
            return jnp.where(inside, safe - jnp.log1p(safe), jnp.inf)

        return total(_map(term, other, point))

    def contains(self, point: PyTree) -> Flag:
        return everywhere(_map(lambda x: x > 0, point))

    def chart(self, point: PyTree, coordinates: PyTree) -> PyTree:
        return _map(lambda x, c: x * jnp.exp(c / x), point, coordinates)

    @property
    def domain(self) -> str:
        return "be positive in every entry"


class LogDeterminant(AbstractLegendre):
    r"""$h(X) = -\log\det X$ on symmetric positive definite matrices: steepest descent is $V = -X\,\xi\,X$ with the
    symmetric part of $\xi$, the mirror step is $(X^{-1} + \alpha\xi)^{-1}$, and the divergence is Stein's loss.

    Every array of the state is a matrix. As with [`thalweg.BurgEntropy`][], a step to where $X^{-1} + \alpha\xi$ is not
    positive definite has no end point.

    **Source:** Kulis, Sustik, Dhillon, *Low-rank kernel learning with Bregman matrix divergences* (2009).
    """

    def value(self, point: PyTree) -> Scalar:
        return -total(_map(lambda x: 2 * jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(_symmetric(x))))), point))

    def gradient(self, point: PyTree) -> PyTree:
        return _map(lambda x: -_inverse(x), point)

    def conjugate_gradient(self, dual: PyTree, near: PyTree) -> PyTree:
        return _map(lambda theta: -_inverse(theta), dual)

    def apply_hessian(self, point: PyTree, tangent: PyTree) -> PyTree:
        return _map(lambda x, v: jnp.linalg.solve(x, jnp.linalg.solve(x, v).T).T, point, tangent)

    def solve_hessian(self, point: PyTree, cotangent: PyTree) -> PyTree:
        return _map(lambda x, g: _symmetric(x @ _symmetric(g) @ x), point, cotangent)

    def divergence(self, other: PyTree, point: PyTree) -> Scalar:
        def term(y: Array, x: Array) -> Array:
            relative = _relative(jnp.linalg.cholesky(_symmetric(x)), y)
            log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(relative))))
            return jnp.trace(relative) - x.shape[0] - log_det

        return total(_map(term, other, point))

    def contains(self, point: PyTree) -> Flag:
        def definite(x: Array) -> Array:
            # A matrix that is not square is said to be outside, so that the error at the start can say what is meant.
            if x.ndim != 2 or x.shape[0] != x.shape[1]:
                return jnp.asarray(False)
            symmetric = jnp.max(jnp.abs(x - x.T)) <= 10 * jnp.finfo(x.dtype).eps ** 0.5 * jnp.max(jnp.abs(x))
            return symmetric & jnp.all(jnp.isfinite(jnp.linalg.cholesky(_symmetric(x))))

        return everywhere(_map(definite, point))

    def chart(self, point: PyTree, coordinates: PyTree) -> PyTree:
        def moved(x: Array, c: Array) -> Array:
            factor = jnp.linalg.cholesky(_symmetric(x))
            return _symmetric(factor @ expm(_relative(factor, c)) @ factor.T)

        return _map(moved, point, coordinates)

    @property
    def domain(self) -> str:
        return "be a symmetric positive definite matrix (each array of it)"


class SquaredPNorm(AbstractLegendre):
    r"""$h(x) = \tfrac12\|x\|_p^2$, $1 < p \le 2$: between gradient descent ($p = 2$) and exponentiated gradients ($p$
    near 1, for sparse answers). The mirror map is $\nabla h(x)_i = \|x\|_p^{2-p}|x_i|^{p-1}\operatorname{sign} x_i$,
    and its inverse is the same with $p' = p/(p-1)$.

    The metric has no value at $x = 0$, so a flow does not begin there. An entry that is zero has infinite curvature and
    no velocity; the mirror step of [`thalweg.Explicit`][] moves it all the same.

    **Arguments:** `exponent`: $p$, dimensionless.

    **Raises:** `ValueError` unless `1 < exponent <= 2`.

    **Source:** Gentile, *The robustness of the p-norm algorithms* (2003).
    """

    exponent: ScalarLike

    def __check_init__(self) -> None:
        if not _tree.is_traced(self.exponent) and not 1 < self.exponent <= 2:
            raise ValueError(f"`exponent` of `SquaredPNorm` must lie in (1, 2]; got {self.exponent}.")

    def value(self, point: PyTree) -> Scalar:
        return 0.5 * p_norm(ravel_pytree(point)[0], self.exponent) ** 2

    def gradient(self, point: PyTree) -> PyTree:
        x, unravel = ravel_pytree(point)
        return unravel(_mirror(x, self.exponent))

    def conjugate_gradient(self, dual: PyTree, near: PyTree) -> PyTree:
        theta, unravel = ravel_pytree(dual)
        return unravel(_mirror(theta, conjugate(self.exponent)))

    def apply_hessian(self, point: PyTree, tangent: PyTree) -> PyTree:
        (x, unravel), v = ravel_pytree(point), ravel_pytree(tangent)[0]
        p = jnp.asarray(self.exponent, x.dtype)
        size = p_norm(x, p)
        unit = jnp.abs(x) / size
        slope = unit ** (p - 1) * jnp.sign(x)
        # Infinite curvature times no motion is no force.
        curved = jnp.where(v == 0, 0, (p - 1) * jnp.where(v == 0, 1, unit) ** (p - 2) * v)
        return unravel(curved + (2 - p) * slope * jnp.sum(slope * v))

    def solve_hessian(self, point: PyTree, cotangent: PyTree) -> PyTree:
        # The Hessian of the conjugate at θ = ∇h(x) is the inverse; its powers p′ − 2 ≥ 0 are harmless at zero.
        (x, unravel), g = ravel_pytree(point), ravel_pytree(cotangent)[0]
        q = conjugate(jnp.asarray(self.exponent, x.dtype))
        theta = _mirror(x, self.exponent)
        unit = jnp.abs(theta) / p_norm(theta, q)
        slope = unit ** (q - 1) * jnp.sign(theta)
        return unravel((q - 1) * unit ** (q - 2) * g + (2 - q) * slope * jnp.sum(slope * g))

    def divergence(self, other: PyTree, point: PyTree) -> Scalar:
        difference = _map(jnp.subtract, other, point)
        return self.value(other) - self.value(point) - _tree.dot(self.gradient(point), difference)

    def contains(self, point: PyTree) -> Flag:
        return jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(point)]))

    def chart(self, point: PyTree, coordinates: PyTree) -> PyTree:
        return _map(jnp.add, point, coordinates)

    @property
    def domain(self) -> str:
        return "not be zero, where h has no Hessian"


def _mirror(x: Array, exponent: Any) -> Array:
    exponent = jnp.asarray(exponent, x.dtype)
    size = p_norm(x, exponent)
    return size * (jnp.abs(x) / jnp.where(size > 0, size, 1)) ** (exponent - 1) * jnp.sign(x)


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.T)


def _inverse(matrix: Array) -> Array:
    return _symmetric(jnp.linalg.inv(_symmetric(matrix)))


def _relative(factor: Array, matrix: Array) -> Array:
    """$L^{-1} Y L^{-T}$."""
    half = solve_triangular(factor, _symmetric(matrix), lower=True)
    return _symmetric(solve_triangular(factor, half.T, lower=True))
