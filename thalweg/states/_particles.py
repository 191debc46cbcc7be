"""A probability measure carried by moving particles."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._result import RESULTS
from thalweg._types import Array, PRNGKey, PyTree, Scalar
from thalweg.states._base import AbstractDensity, is_concrete, no_density_error
from thalweg.states.densities import AbstractDensityModel

# Rows of a pairwise sum that are held at once.
_TILE = 256


class Particles(AbstractDensity):
    r"""The measure $\sum_i w_i\,\delta_{x_i}$.

    **Arguments:** `positions`: shape `(num_particles, dim)`, finite; `log_weights`: shape `(num_particles,)`,
    normalised so that the weights sum to one (`None`: equal weights); `density`: a density model such as
    `tw.KernelDensity()`, which lets energies read the density of the particles. Without one, an entropy cannot be
    evaluated: it must be played by noise (`tw.Langevin`).

    **Raises:** `ValueError` for a wrong shape, NaN, or weights that do not sum to one.
    """

    positions: Array
    log_weights: Array | None = None
    density: AbstractDensityModel | None = None

    def __check_init__(self) -> None:
        if not is_concrete(self.positions, self.log_weights):
            return
        if self.positions.ndim < 2 or self.positions.shape[-2] < 1:
            raise ValueError(
                f"`positions` must have shape (num_particles, dim); got shape {self.positions.shape}. "
                "Points of the line have dim = 1: use `positions[:, None]`."
            )
        if not jnp.issubdtype(self.positions.dtype, jnp.floating) or not np.all(
            np.isfinite(np.asarray(self.positions))
        ):
            raise ValueError("`positions` must be finite floating-point numbers; got NaN, infinity or integers.")
        if self.log_weights is not None:
            if self.log_weights.shape != self.positions.shape[:-1]:
                raise ValueError(
                    f"`log_weights` must have shape {self.positions.shape[:-1]}; got {self.log_weights.shape}."
                )
            mass = np.sum(np.exp(np.asarray(self.log_weights)), axis=-1)
            if np.any(np.abs(mass - 1) > 1e-4):
                raise ValueError(
                    "`log_weights` must be normalised, sum(exp(log_weights)) = 1; "
                    f"got a sum of {float(np.ravel(mass)[0]):.4g}. Subtract `jax.nn.logsumexp(log_weights)`."
                )

    @classmethod
    def sample(
        cls, density: Any, num_particles: int, *, key: PRNGKey, model: AbstractDensityModel | None = None
    ) -> "Particles":
        """Draw `num_particles` independent particles from a density state that can `sample`, such as `tw.Gaussian`."""
        if num_particles < 1:
            raise ValueError(f"`num_particles` must be positive; got {num_particles}.")
        return cls(density.sample(key, num_particles), density=model)

    @property
    def num_particles(self) -> int:
        """The number of particles."""
        return self.positions.shape[-2]

    @property
    def dim(self) -> int:
        """The dimension of the space in which the particles move."""
        return self.positions.shape[-1]

    @property
    def weights(self) -> Array:
        """The weights $w_i$, shape `(num_particles,)`."""
        return jnp.exp(self._log_weights())

    def _log_weights(self) -> Array:
        if self.log_weights is not None:
            return self.log_weights
        return jnp.full(self.positions.shape[:-1], -math.log(self.num_particles), self.positions.dtype)

    @property
    def knows_density(self) -> bool:
        """Whether a density model was given."""
        return self.density is not None

    def expect(self, potential: Callable[..., Any]) -> Scalar:
        r"""$\sum_i w_i V(x_i)$."""
        return jnp.sum(self.weights * jax.vmap(potential)(self.positions).astype(self.positions.dtype))

    def expect_pair(self, kernel: Callable[..., Any]) -> Scalar:
        r"""$\sum_{ij} w_i w_j W(x_i - x_j)$, in tiles; the terms $i = j$ are included."""
        weights = self.weights

        @jax.checkpoint
        def row(position: Array) -> Array:
            return jnp.sum(weights * jax.vmap(kernel)(position[None] - self.positions))

        rows = jax.lax.map(row, self.positions, batch_size=min(_TILE, self.num_particles))
        return jnp.sum(weights * rows)

    def log_density_at_particles(self) -> Array:
        """The estimated log density at each particle, shape `(num_particles,)`."""
        if self.density is None:
            raise no_density_error(self, "`log_density_at_particles`")
        return self.density.log_density(self.positions, self.positions, self._log_weights())

    def integrate(self, integrand: Callable[..., Any]) -> Scalar:
        r"""$\sum_i w_i\, e(\hat q(x_i), x_i)/\hat q(x_i)$ with the density model's $\hat q$."""
        if self.density is None:
            raise no_density_error(self, "An internal energy or an f-divergence")
        values = jnp.exp(self.log_density_at_particles())
        return jnp.sum(self.weights * jax.vmap(integrand)(values, self.positions) / values)

    def negative_entropy(self) -> Scalar:
        r"""$\sum_i w_i \log\hat q(x_i)$ with the density model's $\hat q$."""
        if self.density is None:
            raise no_density_error(self, "An entropy")
        return jnp.sum(self.weights * self.log_density_at_particles())

    def moving(self) -> PyTree:
        """The positions and the weights."""
        return _tree.floating(self)

    def quadrature_weights(self) -> PyTree:
        """A particle weighs its mass."""
        weights = jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), self.moving())
        weights = eqx.tree_at(lambda s: s.positions, weights, self.weights)
        if self.log_weights is not None:
            weights = eqx.tree_at(lambda s: s.log_weights, weights, self.weights)
        return weights

    def admissibility(self) -> Any:
        """Finite."""
        return RESULTS.where(_tree.all_finite(self), RESULTS.successful, RESULTS.non_finite)

    def mean(self) -> Array:
        """The weighted mean, shape `(dim,)`."""
        return jnp.sum(self.weights[..., None] * self.positions, axis=-2)

    def covariance(self) -> Array:
        """The weighted covariance (divided by the total mass), shape `(dim, dim)`."""
        centred = self.positions - jnp.expand_dims(self.mean(), -2)
        return jnp.einsum("...n,...ni,...nj->...ij", self.weights, centred, centred)
