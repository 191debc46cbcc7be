r"""Eight schools: the smallest hierarchical model that is not easy.

Coaching effects in eight schools, each measured once with a known standard error, shrink towards a common mean by an
unknown amount. Given $\mu$ and $\tau$ the effects are Gaussian, so that two numbers remain; the evidence below was
computed from them.
"""

import importlib.resources
import json
import math

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array
from thalweg.problems._problem import Moments, TargetProblem

# log p(y) = log ∬ Π N(y_j; μ, σ_j² + τ²) N(μ; 0, 25) half-Cauchy(τ; 5) dμ dτ, by the trapezoidal rule in (μ, log τ)
# on two grids of up to 1601 × 3201 nodes, which agree to 1e-11; a test computes it again.
_LOG_EVIDENCE = -31.3113473523


def eight_schools() -> TargetProblem:
    r"""The posterior of the eight schools, non-centred and on an unconstrained scale.

    $$y_j \sim N(\theta_j, \sigma_j^2), \quad \theta_j = \mu + \tau\tilde\theta_j, \; \tilde\theta_j \sim N(0, 1), \;
    \mu \sim N(0, 5^2), \quad \tau \sim \text{half-Cauchy}(5).$$

    A point is $(\tilde\theta_1, \dots, \tilde\theta_8, \mu, \log\tau)$, shape `(10,)`; the log density contains the
    Jacobian $\log\tau$ and every constant, so that its integral is the evidence $p(y)$. `constrain(x)` gives `theta`,
    shape `(8,)`, `mu` and `tau`, shapes `()`. `reference` holds their moments from 10,000 almost independent draws of
    posteriordb.

    **Source:** Rubin, J. Educ. Stat. 6 (1981); Gelman et al., *Bayesian Data Analysis* (2013), section 5.5;
    reference: posteriordb, `eight_schools-eight_schools_noncentered`.
    """
    file = importlib.resources.files("thalweg.problems") / "data" / "eight_schools.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    effects = np.asarray(record["data"]["y"], float)
    errors = np.asarray(record["data"]["sigma"], float)
    published = record["reference"]

    def moments(names: str | list[str]) -> Moments:
        def gather(key: str) -> Array:
            return jnp.asarray(published[names][key] if isinstance(names, str) else [published[n][key] for n in names])

        return Moments(gather("mean"), gather("sd"), published["mu"]["draws"])

    def constrain(x: Array) -> dict[str, Array]:
        tau = jnp.exp(x[9])
        return {"theta": x[8] + tau * x[:8], "mu": x[8], "tau": tau}

    def log_density(x: Array) -> Array:
        theta = constrain(x)["theta"]
        misfit = (jnp.asarray(effects, x.dtype) - theta) / jnp.asarray(errors, x.dtype)
        # log half-Cauchy(τ; 5) + log τ; softplus is log(1 + (τ/5)²) without overflow.
        scale = math.log(2 / (5 * math.pi)) - jax.nn.softplus(2 * (x[9] - math.log(5.0))) + x[9]
        constant = -8.5 * math.log(2 * math.pi) - math.log(5.0) - float(np.sum(np.log(errors)))
        return constant - 0.5 * (jnp.sum(misfit**2) + jnp.sum(x[:8] ** 2) + (x[8] / 5.0) ** 2) + scale

    return TargetProblem(
        name="eight_schools",
        source="Rubin, J. Educ. Stat. 6 (1981) 377-401; reference moments: posteriordb (BSD-3-Clause)",
        dim=10,
        log_density=log_density,
        log_evidence=_LOG_EVIDENCE,
        constrain=constrain,
        reference={
            "theta": moments([f"theta[{j}]" for j in range(1, 9)]),
            "mu": moments("mu"),
            "tau": moments("tau"),
        },
    )
