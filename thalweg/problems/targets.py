"""Distributions to reach that have exact samplers and exact moments: each is hard for a sampler in its own way."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array, PRNGKey
from thalweg.problems._matrices import reflection, with_eigenvalues
from thalweg.problems._problem import Moments, TargetProblem


def gaussian(dim: int = 2, condition_number: float = 10.0) -> TargetProblem:
    r"""A normal distribution with oblique axes, whose variances are spaced geometrically from 1 down to one over the
    condition number.

    $$p = N(a, \Sigma), \qquad a = (1, \dots, 1), \qquad \operatorname{cond}\Sigma = \kappa.$$

    **Source:** linear algebra.
    """
    if not condition_number >= 1:
        raise ValueError(f"`condition_number` must be at least 1; got {condition_number}.")
    variances = np.geomspace(1.0, 1.0 / condition_number, dim)
    covariance, precision = with_eigenvalues(variances), with_eigenvalues(1 / variances)
    constant = -0.5 * (dim * math.log(2 * math.pi) + float(np.sum(np.log(variances))))

    def log_density(x: Array) -> Array:
        offset = x - 1.0
        return constant - 0.5 * offset @ jnp.asarray(precision, x.dtype) @ offset

    def sample(key: PRNGKey, num_samples: int) -> Array:
        noise = jax.random.normal(key, (num_samples, dim))
        return 1.0 + noise * jnp.asarray(np.sqrt(variances))[None] @ jnp.asarray(reflection(dim))

    return TargetProblem(
        name="gaussian",
        source="linear algebra",
        dim=dim,
        log_density=log_density,
        log_evidence=0.0,
        reference={"x": Moments(jnp.ones(dim), jnp.asarray(np.sqrt(np.diag(covariance))))},
        sample=sample,
    )


def banana(curvature: float = 0.03) -> TargetProblem:
    r"""A Gaussian bent along a parabola.

    $$x_1 \sim N(0, 10^2), \qquad x_2 \mid x_1 \sim N(b\,(x_1^2 - 100), 1).$$

    Means zero; $\operatorname{sd}(x_1) = 10$, $\operatorname{sd}(x_2) = \sqrt{1 + 2\cdot 10^4\,b^2}$.

    **Arguments:** `curvature`: $b$.

    **Source:** Haario, Saksman and Tamminen, Comput. Stat. 14 (1999).
    """

    def log_density(x: Array) -> Array:
        bend = x[1] - curvature * (x[0] ** 2 - 100.0)
        return -0.5 * (x[0] / 10.0) ** 2 - 0.5 * bend**2 - math.log(2 * math.pi * 10.0)

    def sample(key: PRNGKey, num_samples: int) -> Array:
        z = jax.random.normal(key, (num_samples, 2))
        return jnp.stack([10.0 * z[:, 0], z[:, 1] + curvature * (100.0 * z[:, 0] ** 2 - 100.0)], axis=1)

    return TargetProblem(
        name="banana",
        source="Haario, Saksman and Tamminen, Comput. Stat. 14 (1999) 375-395",
        dim=2,
        log_density=log_density,
        log_evidence=0.0,
        reference={"x": Moments(jnp.zeros(2), jnp.asarray([10.0, math.sqrt(1 + 2e4 * curvature**2)]))},
        sample=sample,
    )


def unequal_mixture(dim: int = 2, separation: float = 4.0) -> TargetProblem:
    r"""Three well-separated normal lumps of unequal weight and width: a sampler must find all of them and weigh them
    right.

    $$p = 0.6\,N(0, I) + 0.3\,N(s e_1, 0.5^2 I) + 0.1\,N(-s e_1 + \tfrac{s}{2}\mathbf 1_{2\ldots d}, 0.8^2 I).$$

    **Arguments:** `separation`: $s > 0$, the distance of the second lump. `constrain(x)` also gives `region`: which
    of $x_1 < -s/2$, $|x_1| \le s/2$ and $x_1 > s/2$ holds, as an indicator of shape `(3,)`; its exact means are close
    to the weights 0.1, 0.6 and 0.3.

    **Source:** the formula; mixture moments by the law of total variance.
    """
    weights, widths = np.array([0.6, 0.3, 0.1]), np.array([1.0, 0.5, 0.8])
    centres = np.zeros((3, dim))
    centres[1, 0], centres[2, 0], centres[2, 1:] = separation, -separation, separation / 2
    mean = weights @ centres
    variance = weights @ (widths[:, None] ** 2 + centres**2) - mean**2

    # The mass of each region is a sum of normal probabilities.
    edges = np.array([-math.inf, -separation / 2, separation / 2, math.inf])
    below = np.array(
        [
            [0.5 + 0.5 * math.erf((e - c[0]) / (w * math.sqrt(2))) for e in edges]
            for c, w in zip(centres, widths, strict=True)
        ]
    )
    masses = weights @ np.diff(below, axis=1)

    def constrain(x: Array) -> dict[str, Array]:
        left, right = x[0] < -separation / 2, x[0] > separation / 2
        return {"x": x, "region": jnp.stack([left, ~(left | right), right]).astype(x.dtype)}

    def log_terms(x: Array) -> Array:
        offsets = x[None] - jnp.asarray(centres, x.dtype)
        scale = jnp.asarray(widths, x.dtype)
        heights = jnp.asarray(np.log(weights) - dim * np.log(widths * math.sqrt(2 * math.pi)), x.dtype)
        return heights - 0.5 * jnp.sum(offsets**2, axis=1) / scale**2

    def sample(key: PRNGKey, num_samples: int) -> Array:
        lump_key, noise_key = jax.random.split(key)
        lump = jax.random.choice(lump_key, 3, (num_samples,), p=jnp.asarray(weights))
        noise = jax.random.normal(noise_key, (num_samples, dim))
        return jnp.asarray(centres)[lump] + jnp.asarray(widths)[lump][:, None] * noise

    return TargetProblem(
        name="unequal_mixture",
        source="law of total variance",
        dim=dim,
        log_density=lambda x: jax.nn.logsumexp(log_terms(x)),
        log_evidence=0.0,
        constrain=constrain,
        reference={
            "x": Moments(jnp.asarray(mean), jnp.asarray(np.sqrt(variance))),
            "region": Moments(jnp.asarray(masses), jnp.asarray(np.sqrt(masses * (1 - masses)))),
        },
        sample=sample,
        initial_sd=3.0,
    )


def funnel(dim: int = 10) -> TargetProblem:
    r"""Neal's funnel: a scale that varies over many orders of magnitude.

    $$v \sim N(0, 3^2), \qquad x_i \mid v \sim N(0, e^{v}),
    \quad i = 1, \dots, d - 1; \qquad \text{a point is } (v, x_1, \dots, x_{d-1}).$$

    Means zero; $\operatorname{sd}(v) = 3$, $\operatorname{sd}(x_i) = e^{9/4} \approx 9.49$, but sample variances of
    $x_i$ converge slowly: its kurtosis is $3e^9$. Judge a sampler by $v$.

    **Source:** Neal, *Slice sampling*, Ann. Stat. 31 (2003), section 8.
    """
    if dim < 2:
        raise ValueError(f"`funnel` needs dim >= 2; got {dim}.")

    def log_density(x: Array) -> Array:
        v, rest = x[0], x[1:]
        constant = -0.5 * dim * math.log(2 * math.pi) - math.log(3.0)
        return constant - v**2 / 18.0 - 0.5 * (dim - 1) * v - 0.5 * jnp.sum(rest**2) * jnp.exp(-v)

    def sample(key: PRNGKey, num_samples: int) -> Array:
        z = jax.random.normal(key, (num_samples, dim))
        v = 3.0 * z[:, :1]
        return jnp.concatenate([v, jnp.exp(v / 2) * z[:, 1:]], axis=1)

    return TargetProblem(
        name="funnel",
        source="Neal, Ann. Stat. 31 (2003) 705-767, section 8",
        dim=dim,
        log_density=log_density,
        log_evidence=0.0,
        constrain=lambda x: {"v": x[0], "x": x[1:]},
        reference={
            "v": Moments(jnp.zeros(()), jnp.asarray(3.0)),
            "x": Moments(jnp.zeros(dim - 1), jnp.full((dim - 1,), math.exp(2.25))),
        },
        sample=sample,
    )
