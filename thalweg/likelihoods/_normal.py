r"""Normal families: the mean alone, mean and scale, mean and full covariance; and the exponential of a normal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._types import Array, PyTree
from thalweg.likelihoods._base import AbstractIndependent

_LOG_2PI = float(np.log(2 * np.pi))


class Normal(AbstractIndependent):
    r"""$N(\mu, \sigma^2)$ in each entry, with known standard deviation. Fisher matrix $1/\sigma^2$.

    **Arguments:** `scale`: $\sigma > 0$, in units of the observations, a number or an array of the shape of the
    observations. **Parameters:** the means $\mu$, an array of any shape.

    **Raises:** `ValueError` if `scale` is not positive.
    """

    scale: Any = 1.0

    events = 0
    support = "finite numbers"

    def __check_init__(self) -> None:
        if isinstance(self.scale, int | float) and not self.scale > 0:
            raise ValueError(f"`scale` of `Normal` must be positive; got {self.scale}.")

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        return 0.5 * ((params - other) / self._scale(params)) ** 2

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        scale = self._scale(params)
        return -0.5 * ((value - params) / scale) ** 2 - jnp.log(scale) - 0.5 * _LOG_2PI

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        return (tangent / self._scale(params),)

    def supports(self, params: PyTree, value: Any) -> Any:
        return np.isfinite(value)

    def _scale(self, params: Array) -> Array:
        return jnp.asarray(self.scale, params.dtype)


class NormalMeanScale(AbstractIndependent):
    r"""$N(\mu, \sigma^2)$ in each entry with both unknown (a normal of diagonal covariance). Fisher matrix
    $\operatorname{diag}(1/\sigma^2, 2)$ in $(\mu, \log\sigma)$.

    **Parameters:** `{"mean": μ, "log_scale": log σ}`, arrays of one shape.
    """

    events = {"mean": 0, "log_scale": 0}
    support = "finite numbers"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        return _normal_kl(params, other)

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        return _normal_log_density(params, value)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        return _normal_root(params, tangent)

    def supports(self, params: PyTree, value: Any) -> Any:
        return np.isfinite(value)


class LogNormal(AbstractIndependent):
    r"""$\log y \sim N(\mu, \sigma^2)$ in each entry. Its divergence and Fisher matrix are those of the normal, since
    these do not depend on how observations are written.

    **Parameters:** `{"mean": μ, "log_scale": log σ}` of $\log y$, arrays of one shape.
    """

    events = {"mean": 0, "log_scale": 0}
    support = "positive numbers"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        return _normal_kl(params, other)

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        return _normal_log_density(params, jnp.log(value)) - jnp.log(value)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        return _normal_root(params, tangent)

    def supports(self, params: PyTree, value: Any) -> Any:
        return np.isfinite(value) & (value > 0)


def _normal_kl(params: PyTree, other: PyTree) -> Array:
    # exp(2z) − 1 − 2z keeps its digits for near members.
    change = params["log_scale"] - other["log_scale"]
    shift = (params["mean"] - other["mean"]) * jnp.exp(-other["log_scale"])
    return 0.5 * (jnp.expm1(2 * change) - 2 * change + shift**2)


def _normal_log_density(params: PyTree, value: Array) -> Array:
    white = (value - params["mean"]) * jnp.exp(-params["log_scale"])
    return -0.5 * white**2 - params["log_scale"] - 0.5 * _LOG_2PI


def _normal_root(params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
    return tangent["mean"] * jnp.exp(-params["log_scale"]), 2**0.5 * tangent["log_scale"]


class MultivariateNormal(AbstractIndependent):
    r"""$N(\mu, (PP^\top)^{-1})$ in $k$ dimensions with everything unknown.

    **Parameters:** `{"mean": μ, "log_diagonal": log diag P, "lower": the entries of P below its diagonal, row by row}`,
    shapes `(*batch, k)`, `(*batch, k)`, `(*batch, k (k − 1) / 2)`, where $P$ is the lower Cholesky factor of the
    *precision*: every choice of numbers is a member, none is named twice (so the Fisher matrix is never singular), and
    neither the density nor the divergence inverts a covariance. `MultivariateNormal.params_of(mean, covariance)` makes
    them and `covariance(params)` reads them.
    """

    events = {"mean": 1, "log_diagonal": 1, "lower": 1}
    value_event = 1
    support = "finite vectors of length k"

    @staticmethod
    def params_of(mean: Array, covariance: Array) -> dict[str, Array]:
        """The parameters of the member with this mean, shape `(*batch, k)`, and covariance, `(*batch, k, k)`."""
        precision = jnp.linalg.inv(covariance)
        factor = jnp.linalg.cholesky(0.5 * (precision + jnp.swapaxes(precision, -1, -2)))
        if not _tree.is_traced(factor) and not np.all(np.isfinite(factor)):
            raise ValueError("`covariance` must be symmetric positive definite.")
        rows, columns = np.tril_indices(mean.shape[-1], -1)
        diagonal = jnp.diagonal(factor, axis1=-2, axis2=-1)
        return {"mean": mean, "log_diagonal": jnp.log(diagonal), "lower": factor[..., rows, columns]}

    def covariance(self, params: PyTree) -> Array:
        """The covariance, shape `(*batch, k, k)`."""
        inverse = _solve_lower(_factor_of(params), jnp.eye(params["mean"].shape[-1], dtype=params["mean"].dtype))
        return jnp.swapaxes(inverse, -1, -2) @ inverse

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        here, there = _factor_of(params), _factor_of(other)
        # tr(Λ'Σ) = |P⁻¹P'|²; its part on the diagonal is taken with the logarithms, so that near members keep digits.
        ratio = _solve_lower(here, there)
        change = other["log_diagonal"] - params["log_diagonal"]
        rows, columns = np.tril_indices(here.shape[-1], -1)
        below = jnp.sum(ratio[..., rows, columns] ** 2, -1)
        shift = jnp.einsum("...ji,...j->...i", there, params["mean"] - other["mean"])
        return 0.5 * (jnp.sum(jnp.expm1(2 * change) - 2 * change, -1) + below + jnp.sum(shift**2, -1))

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        white = jnp.einsum("...ji,...j->...i", _factor_of(params), value - params["mean"])
        return jnp.sum(params["log_diagonal"] - 0.5 * white**2 - 0.5 * _LOG_2PI, -1)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        # With M = P⁻¹ dP: ½ tr(Σ dΛ Σ dΛ) = ½ |M + Mᵀ|² = 2 Σ M_ii² + Σ_{i>j} M_ij².
        factor = _factor_of(params)
        diagonal = jnp.exp(params["log_diagonal"]) * tangent["log_diagonal"]
        relative = _solve_lower(factor, _lower_matrix(diagonal, tangent["lower"]))
        rows, columns = np.tril_indices(factor.shape[-1], -1)
        shift = jnp.einsum("...ji,...j->...i", factor, tangent["mean"])
        return shift, 2**0.5 * tangent["log_diagonal"], relative[..., rows, columns]

    def supports(self, params: PyTree, value: Any) -> Any:
        return np.all(np.isfinite(value), -1) & (value.shape[-1] == params["mean"].shape[-1])


def _factor_of(params: PyTree) -> Array:
    return _lower_matrix(jnp.exp(params["log_diagonal"]), params["lower"])


def _lower_matrix(diagonal: Array, lower: Array) -> Array:
    size = diagonal.shape[-1]
    rows, columns = np.tril_indices(size, -1)
    matrix = jnp.zeros((*diagonal.shape, size), diagonal.dtype)
    steps = np.arange(size)
    return matrix.at[..., steps, steps].set(diagonal).at[..., rows, columns].set(lower)


def _solve_lower(factor: Array, right: Array) -> Array:
    right = jnp.broadcast_to(right, factor.shape)
    return jax.lax.linalg.triangular_solve(factor, right, left_side=True, lower=True)
