"""Kernel density estimation with the covariance of the sample, in tiles, so that no N×N matrix is ever stored."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array

# Rows of the pairwise sum that are held at once: 256 × N numbers.
_TILE = 256


class AbstractDensityModel(eqx.Module):
    """How particles estimate their own density."""

    @abc.abstractmethod
    def log_density(self, points: Array, positions: Array, log_weights: Array) -> Array:
        """The estimated log density at `points` (shape `(num_points, dim)`) of weighted particles; shape
        `(num_points,)`.
        """


class KernelDensity(AbstractDensityModel):
    r"""A Gaussian kernel density estimate whose kernels have the shape of the sample's covariance $\Sigma$.

    $$\hat q(x) = \sum_i w_i\, N\!\left(x;\; \bar x + \sqrt{1 - h^2}\,(x_i - \bar x),\; h^2 \Sigma\right).$$

    The centres are drawn towards the mean so that $\hat q$ has the mean and the covariance of the sample: without it
    the estimate is too wide by the factor $1 + h^2$, and flows that read $\hat q$ end with too small a variance. For
    a Gaussian sample the estimate is then consistent at every $h$; for separated modes it draws them towards each
    other by $h^2/2$ of their distance to the mean
    (`shrink=False` gives the plain estimate).

    **Arguments:** `bandwidth`: $h$ relative to the sample's standard deviation, in $(0, 1)$; `None` means Silverman's
    $h = (4/(d+2))^{1/(d+4)} N^{-1/(d+4)}$; `shrink`: whether the centres are drawn in.

    The error is $O(h^2)$ and $O(N^{-1/2} h^{-d/2})$: useful up to about five dimensions.

    **Source:** Silverman, *Density Estimation* (1986), §4.3; West, *Approximating posterior distributions by
    mixtures*, JRSS-B 55 (1993).
    """

    bandwidth: float | None = eqx.field(static=True, default=None)
    shrink: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        if self.bandwidth is not None and not 0 < self.bandwidth < 1:
            raise ValueError(
                "`bandwidth` of a `KernelDensity` is relative to the sample's standard deviation and lies in (0, 1); "
                f"got {self.bandwidth}."
            )

    def relative_bandwidth(self, num_particles: int, dim: int) -> float:
        """The bandwidth $h$ that is used for so many particles in so many dimensions."""
        if self.bandwidth is not None:
            return self.bandwidth
        silverman = (4 / (dim + 2)) ** (1 / (dim + 4)) * num_particles ** (-1 / (dim + 4))
        return min(silverman, 0.9)

    def log_density(self, points: Array, positions: Array, log_weights: Array) -> Array:
        num_particles, dim = positions.shape
        h = self.relative_bandwidth(num_particles, dim)
        weights = jnp.exp(log_weights)
        mean = weights @ positions
        centred = positions - mean[None]
        covariance = (centred * weights[:, None]).T @ centred
        factor = jnp.linalg.cholesky(covariance)
        whiten = lambda rows: jax.scipy.linalg.solve_triangular(factor, rows.T, lower=True).T / h  # noqa: E731
        centres = whiten((math.sqrt(1 - h * h) if self.shrink else 1.0) * centred)
        queries = whiten(points - mean[None])
        log_normaliser = -0.5 * dim * math.log(2 * math.pi) - dim * math.log(h) - jnp.sum(jnp.log(jnp.diagonal(factor)))

        # Recomputed on the way back (checkpoint): the memory is one tile, forwards and backwards.
        @jax.checkpoint
        def log_kernel_sum(query: Array) -> Array:
            return jax.nn.logsumexp(log_weights - 0.5 * jnp.sum((query[None] - centres) ** 2, axis=-1))

        return log_normaliser + jax.lax.map(log_kernel_sum, queries, batch_size=min(_TILE, points.shape[0]))
