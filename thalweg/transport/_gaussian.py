"""Optimal transport between Gaussians, in closed form: the map is affine, and the geodesic stays Gaussian."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Scalar, ScalarLike
from thalweg.states import Gaussian
from thalweg.transport._distance import (
    Certificate,
    MapCoupling,
    Transport,
    as_time,
    time_average,
    transport_between,
)


def gaussian_distance_squared(a: Gaussian, b: Gaussian) -> Scalar:
    r"""$W_2^2 = |m_a - m_b|^2 + \operatorname{tr}\left(\Sigma_a + \Sigma_b - 2(L_b^\top\Sigma_a L_b)^{1/2}\right)$
    with $\Sigma_b = L_b L_b^\top$.

    The trace is a difference of numbers of the size of the covariances, so the absolute error is their size times
    the rounding unit.

    **Source:** Olkin, Pukelsheim, *The distance between two random vectors with given dispersion matrices* (1982).
    """
    factor = jnp.linalg.cholesky(b.covariance)
    overlap = jnp.trace(symmetric_sqrt(factor.T @ a.covariance @ factor))
    return jnp.sum((a.mean - b.mean) ** 2) + jnp.trace(a.covariance) + jnp.trace(b.covariance) - 2 * overlap


@jax.custom_jvp
def symmetric_sqrt(matrix: Array) -> Array:
    """The positive root of a symmetric positive definite matrix, shape `(n, n)`; differentiable at equal eigenvalues
    too.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]) @ vectors.T


@symmetric_sqrt.defjvp
def _symmetric_sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # S² = M gives S Ṡ + Ṡ S = Ṁ. Solved as one linear system: derivatives of eigenvectors, which blow up at equal
    # eigenvalues, never appear.
    root = symmetric_sqrt(primals[0])
    identity = jnp.eye(root.shape[0], dtype=root.dtype)
    system = jnp.kron(root, identity) + jnp.kron(identity, root)
    return root, jnp.linalg.solve(system, tangents[0].ravel()).reshape(root.shape)


class AffineMap(eqx.Module):
    r"""$T(x) = m_b + A(x - m_a)$ with symmetric positive definite $A$: a function of one point of shape `(dim,)`."""

    centre: Array
    image: Array
    matrix: Array

    def __call__(self, point: Array) -> Array:
        return self.image + self.matrix @ (point - self.centre)


class QuadraticPotential(eqx.Module):
    r"""$\varphi(x) = |x|^2 - (x - m_a)^\top A(x - m_a) - 2 m_b\cdot x + c$, a function of one point: $\nabla\varphi =
    2(x - T(x))$.
    """

    map: AffineMap
    constant: Scalar

    def __call__(self, point: Array) -> Scalar:
        away = point - self.map.centre
        return point @ point - away @ self.map.matrix @ away - 2 * self.map.image @ point + self.constant

    def mean(self, density: Gaussian) -> Scalar:
        """Its integral against the Gaussian with the centre of its map."""
        identity = jnp.eye(density.dim, dtype=density.mean.dtype)
        return self(density.mean) + jnp.sum((identity - self.map.matrix) * density.covariance)


class GaussianGeodesic(eqx.Module):
    r"""$N(m_t, \Sigma_t)$ with $m_t = (1-t)m_a + tm_b$, $\Sigma_t = S_t\Sigma_aS_t$, $S_t = (1-t)I + tA$.

    **Source:** McCann, *A convexity principle for interacting gases* (1997), example 1.7.
    """

    start: Gaussian
    map: AffineMap

    def _stretch(self, time: Scalar) -> Array:
        return (1 - time) * jnp.eye(self.start.dim, dtype=time.dtype) + time * self.map.matrix

    def __call__(self, time: ScalarLike) -> Gaussian:
        """The Gaussian at a time between 0 and 1."""
        time = as_time(time, self.start.mean.dtype)
        stretch = self._stretch(time)
        covariance = stretch @ self.start.covariance @ stretch.T
        mean = (1 - time) * self.map.centre + time * self.map.image
        return Gaussian(mean, 0.5 * (covariance + covariance.T))

    def velocity(self, time: ScalarLike) -> AffineMap:
        r"""The velocity field at a time, $v(x) = m_b - m_a + (A - I)S_t^{-1}(x - m_t)$."""
        time = as_time(time, self.start.mean.dtype)
        identity = jnp.eye(self.start.dim, dtype=time.dtype)
        rate = jnp.linalg.solve(self._stretch(time).T, (self.map.matrix - identity).T).T
        mean = (1 - time) * self.map.centre + time * self.map.image
        return AffineMap(mean, self.map.image - self.map.centre, rate)

    def action(self) -> Scalar:
        r"""$\int_0^1 |\dot m|^2 + \operatorname{tr}(V_t\Sigma_tV_t^\top)\,\mathrm dt$, from the velocities $V_t$."""

        def rate(time: Array) -> Scalar:
            field, covariance = self.velocity(time), self(time).covariance
            return field.image @ field.image + jnp.trace(field.matrix @ covariance @ field.matrix.T)

        return time_average(rate, self.start.mean.dtype)


@transport_between.register
def _(a: Gaussian, b: Gaussian, solver: Any) -> Transport:
    if solver is not None:
        raise UnsupportedCombination(
            f"Between Gaussians the transport is a closed form and takes no solver; got `{type(solver).__name__}`.\n"
            "Leave `solver=None`."
        )
    # A = L⁻ᵀ (Lᵀ Σ_b L)^½ L⁻¹ with Σ_a = L Lᵀ solves A Σ_a A = Σ_b.
    factor = jnp.linalg.cholesky(a.covariance)
    root = symmetric_sqrt(factor.T @ b.covariance @ factor)
    solve = lambda right, transposed: jax.scipy.linalg.solve_triangular(factor, right, trans=transposed, lower=True)  # noqa: E731
    half = solve(root, 1)
    matrix = solve(half.T, 1)
    forward = AffineMap(a.mean, b.mean, 0.5 * (matrix + matrix.T))
    inverse = jnp.linalg.inv(forward.matrix)
    backward = AffineMap(b.mean, a.mean, 0.5 * (inverse + inverse.T))
    phi = QuadraticPotential(forward, jnp.zeros((), a.mean.dtype))
    psi = QuadraticPotential(backward, 2 * a.mean @ b.mean)
    primal = gaussian_distance_squared(a, b)
    nodes, weights = a.nodes()
    statement = "closed form: the gap is the rounding of both sides, of the size of the squared means and covariances"
    return Transport(
        a,
        b,
        primal,
        forward,
        MapCoupling(nodes, jax.vmap(forward)(nodes), weights),
        (phi, psi),
        Certificate(primal, phi.mean(a) + psi.mean(b), statement),
        GaussianGeodesic(a, forward),
        "closed form",
    )
