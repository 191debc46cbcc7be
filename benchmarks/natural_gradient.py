"""Natural gradient, measured: a step with 10⁵ parameters and 1000 samples, a badly conditioned logistic regression.

`python -m benchmarks.natural_gradient` prints a Markdown table; nothing here is timed in the tests.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import thalweg as tw


def network(width: int = 316) -> tuple[Any, Any]:
    """A network of two hidden layers and its parameters; 316 wide they are 10⁵."""
    keys = jax.random.split(jax.random.key(0), 3)
    layer = lambda key, m, n: {"w": jax.random.normal(key, (m, n)) / m**0.5, "b": jnp.zeros(n)}  # noqa: E731
    params = [layer(keys[0], 1, width), layer(keys[1], width, width), layer(keys[2], width, 1)]

    def model(params: Any, inputs: Any) -> Any:
        h = jnp.tanh(inputs @ params[0]["w"] + params[0]["b"][None])
        h = jnp.tanh(h @ params[1]["w"] + params[1]["b"][None])
        return (h @ params[2]["w"] + params[2]["b"][None])[:, 0]

    return model, params


def large_step(num_samples: int = 1000, width: int = 316, repeats: int = 3) -> list[dict[str, Any]]:
    """Seconds of one natural-gradient step after compilation, by form."""
    model, params = network(width)
    inputs = jnp.linspace(-3, 3, num_samples)[:, None]
    outputs = jnp.sin(3 * inputs[:, 0])
    state = tw.Parametric(params, tw.likelihoods.Regression(model, inputs, tw.likelihoods.Normal(0.1)))
    energy = tw.NegativeLogLikelihood(outputs)
    found = []
    for name, geometry in {
        "chosen": tw.FisherRao(),
        "chosen, damped 1e-3": tw.FisherRao(1e-3),
        "matrix-free, damped 1e-3": tw.FisherRao(1e-3, tw.MatrixFreeFisher(1e-6, 200)),
    }.items():

        @eqx.filter_jit
        def step(state: Any, geometry: Any = geometry) -> Any:
            metric, xi = geometry.at(state), tw.first_variation(energy, state)
            velocity = metric.steepest_descent(xi)
            return metric.move(velocity, 1.0), tw.pairing(xi, velocity), metric.norm_squared(velocity)

        began = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(eqx.filter(step(state), eqx.is_array)))
        compiled = time.perf_counter() - began
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            moved, slope, square = jax.block_until_ready(step(state))
            seconds.append(time.perf_counter() - began)
        found.append(
            {
                "what": f"one step, {ravel_pytree(params)[0].size} parameters, {num_samples} samples",
                "form": f"{name}: {geometry.at(state).why}",
                "seconds": min(seconds),
                "first call": compiled,
                "result": f"misfit {float(energy(state)):.4g} to {float(energy(moved)):.4g}; "
                f"identity off by {abs(float(1 + slope / square)):.0e}",
            }
        )
    return found


def logistic_problem(condition: float = 1e3, num: int = 1000, dim: int = 50) -> tuple[Any, Any]:
    """Inputs whose singular values span `condition`, and outcomes drawn from a logistic model."""
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(num, dim)))
    right, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    inputs = left * np.geomspace(1, 1 / condition, dim) @ right.T * num**0.5
    true = right @ (rng.normal(size=dim) * np.minimum(np.geomspace(1, condition, dim), 20.0))
    outcomes = rng.random(num) < 1 / (1 + np.exp(-inputs @ true))
    return jnp.asarray(inputs), jnp.asarray(outcomes.astype(float))


def newton_reference(inputs: Any, outcomes: Any) -> np.ndarray:
    """The optimum by Newton's method in extended precision (NumPy long double), solved in float64 with refinement."""
    x, y = np.asarray(inputs, np.longdouble), np.asarray(outcomes, np.longdouble)
    theta = np.zeros(x.shape[1], np.longdouble)
    for _ in range(60):
        p = 1 / (1 + np.exp(-(x @ theta)))
        gradient, hessian = x.T @ (y - p), (x.T * (p * (1 - p))) @ x
        theta = theta + np.linalg.solve(hessian.astype(float), gradient.astype(float))
    return theta


def logistic(num_steps: int = 12) -> dict[str, Any]:
    """Natural-gradient steps until F − F* ≤ 1e-12 of F(θ₀) − F*, and the error of the parameters there."""
    inputs, outcomes = logistic_problem()
    family = tw.likelihoods.Regression(lambda theta, x: x @ theta, inputs, tw.likelihoods.Bernoulli())
    state = tw.Parametric(jnp.zeros(inputs.shape[1]), family)
    step = tw.Explicit(tw.Backtracking())
    energy = tw.NegativeLogLikelihood(outcomes)
    began = time.perf_counter()
    path = tw.flow(energy, state, geometry=tw.FisherRao(), scheme=step, num_steps=num_steps, throw=False)
    seconds = time.perf_counter() - began
    best = newton_reference(inputs, outcomes)
    x, y = np.asarray(inputs, np.longdouble), np.asarray(outcomes, np.longdouble)
    value = lambda theta: np.sum(np.logaddexp(0, x @ theta) - y * (x @ theta))  # noqa: E731
    thetas = np.asarray(path.states.params).astype(np.longdouble)
    gaps = np.array([value(theta) for theta in thetas]) - value(best)
    reached = np.nonzero(gaps <= 1e-12 * gaps[0])[0]
    errors = np.linalg.norm((thetas - best).astype(float), axis=1) / float(np.linalg.norm(best))
    return {
        "what": "logistic regression, condition 1e3, n = 1000, d = 50",
        "form": "dense (Fisher matrix = Hessian)",
        "seconds": seconds,
        "first call": seconds,
        "steps": int(reached[0]) if len(reached) else None,
        "parameter error": float(errors[-1]),
        "result": f"F − F* ≤ 1e-12 (F₀ − F*) after {reached[:1]} steps; after {len(gaps) - 1} gap "
        f"{float(gaps[-1] / gaps[0]):.0e}, parameters {float(errors[-1]):.0e} (relative)",
    }


def rows() -> list[dict[str, Any]]:
    """The measurements, one dictionary a row."""
    return [logistic(), *large_step()]


def main() -> None:
    """Print the Markdown table."""
    jax.config.update("jax_enable_x64", True)
    print("| what | form | seconds | first call | result |\n| --- | --- | ---: | ---: | --- |")
    for row in rows():
        times = f"{row['seconds']:.2f} | {row['first call']:.1f}"
        print(f"| {row['what']} | {row['form']} | {times} | {row['result']} |", flush=True)


if __name__ == "__main__":
    main()
