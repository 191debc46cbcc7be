r"""Families of a location and a scale whose tails are heavier than the normal's: Student's t and Laplace."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from thalweg._types import Array, PyTree
from thalweg.likelihoods._base import AbstractIndependent
from thalweg.likelihoods._special import along_new_axis


class StudentT(AbstractIndependent):
    r"""Student's t with $\nu$ degrees of freedom, location $\mu$ and scale $\sigma$ in each entry. Fisher matrix
    $\operatorname{diag}((\nu+1)/((\nu+3)\sigma^2),\ 2\nu/(\nu+3))$ in $(\mu, \log\sigma)$.

    The divergence has no closed form. It needs $E\log((t-b)^2 + c^2) = 2\operatorname{Re} E\log(b + ic - t)$ over $t
    \sim t_\nu$. That function of $t$ is analytic below the real line, so the path of integration is tilted down, $t =
    \sqrt\nu\sinh(s - i\theta)$, where the trapezoidal rule converges at one rate, to rounding, whatever $b$ and $c >
    0$.

    **Arguments:** `dof`: $\nu > 0$, known. **Parameters:** `{"location": μ, "log_scale": log σ}`, arrays of one shape.

    **Raises:** `ValueError` if `dof` is not a positive finite number.
    """

    dof: float = eqx.field(static=True, default=4.0)

    events = {"location": 0, "log_scale": 0}
    support = "finite numbers"

    def __check_init__(self) -> None:
        if not isinstance(self.dof, int | float) or not 0 < self.dof < float("inf"):
            raise ValueError(f"`dof` of `StudentT` must be a positive finite number; got {self.dof}.")

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        nodes, weights, own = _tilted_nodes(float(self.dof))
        change = other["log_scale"] - params["log_scale"]
        b = (other["location"] - params["location"]) * jnp.exp(-params["log_scale"])
        c = self.dof**0.5 * jnp.exp(change)
        real, imaginary = (along_new_axis(part, b) for part in (nodes.real, nodes.imag))
        along, up = b[..., None] - real, c[..., None] - imaginary
        # Re(w log z) = Re w log|z| − Im w arg z; up > 0, so the argument is the principal one.
        log_size = 0.5 * jnp.log(along**2 + up**2)
        argument = jnp.arctan2(up, along)
        real_part, imaginary_part = (along_new_axis(part, b) for part in (weights.real, weights.imag))
        mean = 2 * jnp.sum(real_part * log_size - imaginary_part * argument, -1)
        # E log(1 + z'²/ν) = mean − log c²; at equality it is `own`, found by the same rule, so that the divergence is
        # zero.
        return change + 0.5 * (self.dof + 1) * (mean - 2 * change - own)

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        white = (value - params["location"]) * jnp.exp(-params["log_scale"])
        half = 0.5 * (self.dof + 1)
        dtype = white.dtype
        constant = gammaln(jnp.asarray(half, dtype)) - gammaln(jnp.asarray(0.5 * self.dof, dtype))
        constant = constant - 0.5 * np.log(np.pi * self.dof)
        return constant - params["log_scale"] - half * jnp.log1p(white**2 / self.dof)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        location = ((self.dof + 1) / (self.dof + 3)) ** 0.5 * jnp.exp(-params["log_scale"])
        scale = (2 * self.dof / (self.dof + 3)) ** 0.5
        return location * tangent["location"], scale * tangent["log_scale"]

    def supports(self, params: PyTree, value: Any) -> Any:
        return np.isfinite(value)


def _tilted_nodes(dof: float) -> tuple[Any, Any, float]:
    """Nodes and weights of E over t_ν on the tilted path, and E log(t² + ν) by them."""
    # The density is cosh(s − iθ)^−ν ds: |cosh|^−ν is at most cos(θ)^−ν, about 3 with this θ, so that little cancels.
    theta = min(np.pi / 4, 1.5 / dof**0.5)
    # Distance θ to the nearest singularity on either side: the error is exp(−2πθ/h).
    step = 2 * np.pi * theta / 38
    # Where the density has fallen to 1e-18 of its peak.
    reach = np.arccosh(np.exp(min(42 / dof, 600.0))) if dof > 0.1 else 42 / dof
    half = np.arange(0.5, reach / step + 1) * step
    s = np.concatenate([-half[::-1], half]) - 1j * theta
    log_cosh = np.where(s.real > 0, s, -s) + np.log1p(np.exp(-2 * np.where(s.real > 0, s, -s))) - np.log(2)
    weights = np.exp(-dof * log_cosh)
    weights = weights / np.sum(weights)
    nodes = dof**0.5 * np.sinh(s)
    own = 2 * float(np.sum(weights * np.log(1j * dof**0.5 - nodes)).real)
    return nodes, weights, own


class Laplace(AbstractIndependent):
    r"""$p(y) = e^{-|y-\mu|/b}/2b$ in each entry. Fisher matrix $\operatorname{diag}(1/b^2, 1)$ in $(\mu, \log b)$.

    **Parameters:** `{"location": μ, "log_scale": log b}`, arrays of one shape.
    """

    events = {"location": 0, "log_scale": 0}
    support = "finite numbers"

    def kl_each(self, params: PyTree, other: PyTree) -> Array:
        # log(b'/b) + (b/b')(x + e^−x) − 1 with x = |μ' − μ|/b; φ(x) = x + e^−x − 1 is smooth twice through x = 0.
        change = params["log_scale"] - other["log_scale"]
        distance = (other["location"] - params["location"]) * jnp.exp(-params["log_scale"])
        return jnp.expm1(change) - change + jnp.exp(change) * _phi(distance)

    def log_density_each(self, params: PyTree, value: Array) -> Array:
        return -jnp.abs(value - params["location"]) * jnp.exp(-params["log_scale"]) - params["log_scale"] - np.log(2)

    def root(self, params: PyTree, tangent: PyTree) -> tuple[Array, ...]:
        return tangent["location"] * jnp.exp(-params["log_scale"]), tangent["log_scale"]

    def supports(self, params: PyTree, value: Any) -> Any:
        return np.isfinite(value)


@jax.custom_jvp
def _phi(x: Array) -> Array:
    """|x| + exp(−|x|) − 1, with its derivatives at zero, which those of |x| would spoil."""
    return jnp.abs(x) + jnp.expm1(-jnp.abs(x))


@_phi.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return _phi(x), _phi_slope(x) * dx


@jax.custom_jvp
def _phi_slope(x: Array) -> Array:
    return -jnp.sign(x) * jnp.expm1(-jnp.abs(x))


@_phi_slope.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return _phi_slope(x), jnp.exp(-jnp.abs(x)) * dx
