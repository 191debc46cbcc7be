"""A physics-informed network for Poisson's equation in the unit square, by `tw.fit` and its peers, seed by seed.

    python -m benchmarks.pinn                                   # 20 seeds each; writes results/pinn.json and .md
    python -m benchmarks.pinn --solvers thalweg --reuse --seeds 5

The problem is that of Müller and Zeinhofer, *Achieving high accuracy with PINNs via energy natural gradient descent*
(ICML 2023): −Δu = f with u* = sin πx sin πy, a network 2–32–1 with tanh, 129 parameters, all of them 0.1·N(0, 1) at the
start (weights and biases), loss mean((Δu + f)²) + 4·mean over the boundary of u² on the points k/29 of the square.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
from jax.flatten_util import ravel_pytree

import thalweg as tw
from benchmarks import _harness as harness
from benchmarks._harness import Answer

WIDTH, LATTICE, EVALUATION = 32, 30, 201
OURS = "thalweg"
STEPS = {OURS: 500, "energy natural gradient": 500, "optimistix LM": 500, "Adam": 20000}


def points() -> tuple[Any, Any]:
    """The 784 interior and 116 boundary points, and for each the two coefficients (a, b) of its residual
    a·(Δu + f) + b·u: the loss is the sum of the squares."""
    axis = np.linspace(0.0, 1.0, LATTICE)
    lattice = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    boundary = np.any((lattice == 0.0) | (lattice == 1.0), axis=1)
    weights = np.stack([~boundary / np.sqrt(np.sum(~boundary)), 2.0 * boundary / np.sqrt(np.sum(boundary))], axis=-1)
    return jnp.asarray(lattice), jnp.asarray(weights)


def initial_params(seed: int) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = {"weight": (WIDTH, 2), "bias": (WIDTH,), "out_weight": (WIDTH,), "out_bias": ()}
    return {name: 0.1 * jax.random.normal(key, shape) for (name, shape), key in zip(shapes.items(), keys, strict=True)}


def network(params: Any, x: Any) -> Any:
    hidden = jnp.tanh(params["weight"] @ x + params["bias"])
    return params["out_weight"] @ hidden + params["out_bias"]


def solution(x: Any) -> Any:
    return jnp.sin(jnp.pi * x[0]) * jnp.sin(jnp.pi * x[1])


def laplacian(fn: Callable[..., Any], x: Any) -> Any:
    """Second derivatives along the axes, forward over forward: with its gradient in the parameters this takes a third
    of the time of the trace of `jax.hessian` (0.7 ms and 2.2 ms for the 784 points)."""

    def second(direction: Any) -> Any:
        return jax.jvp(lambda y: jax.jvp(fn, (y,), (direction,))[1], (x,), (direction,))[1]

    return jnp.sum(jax.vmap(second)(jnp.eye(x.shape[0])))


def residual(params: Any, x: Any, weights: Any) -> Any:
    """The weighted residual at one point."""
    source = 2 * jnp.pi**2 * solution(x)
    return weights[0] * (laplacian(lambda y: network(params, y), x) + source) + weights[1] * network(params, x)


def model(params: Any, inputs: Any) -> Any:
    """All residuals: what a fit brings to zero."""
    return jax.vmap(residual, (None, 0, 0))(params, *inputs)


@jax.jit
def relative_error(params: Any) -> Any:
    """Relative L² error on a lattice of 201 × 201 points, the boundary included."""
    axis = jnp.linspace(0.0, 1.0, EVALUATION)
    lattice = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    exact = jax.vmap(solution)(lattice)
    found = jax.vmap(network, (None, 0))(params, lattice)
    return jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)


def thalweg() -> Callable[[Any], Answer]:
    """`tw.fit` with a normal likelihood: every residual is an output that should be zero."""
    inputs = points()
    zeros = jnp.zeros(inputs[0].shape[0])

    def fit(params: Any) -> Answer:
        path = tw.fit(model, inputs, zeros, params, num_steps=STEPS[OURS])
        return Answer(path.final.state.params, int(path.final.num_steps), path.message)

    return fit


def energy_natural_gradient() -> Callable[[Any], Answer]:
    """As published: θ ← θ − η G⁺∇L, G the Gram matrix of the energy's inner product (for this loss JᵀJ), G⁺ by least
    squares with the default cutoff, η the best of 0.5ᵏ, k = 0, …, 30, taken even where none lowers the loss."""
    inputs = points()

    @jax.jit
    def solve(params: Any) -> Any:
        start, unravel = ravel_pytree(params)

        def row(flat: Any, x: Any, weights: Any) -> Any:
            return residual(unravel(flat), x, weights)

        def loss(flat: Any) -> Any:
            return jnp.sum(model(unravel(flat), inputs) ** 2)

        def step(flat: Any, _: Any) -> Any:
            jacobian = jax.vmap(jax.grad(row), (None, 0, 0))(flat, *inputs)
            gradient = jacobian.T @ model(unravel(flat), inputs)
            direction = jnp.linalg.lstsq(jacobian.T @ jacobian, gradient)[0]
            sizes = 0.5 ** jnp.arange(31.0)
            values = jax.lax.map(lambda size: loss(flat - size * direction), sizes)
            best = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
            return flat - sizes[best] * direction, None

        return unravel(jax.lax.scan(step, start, None, length=STEPS["energy natural gradient"])[0])

    def fit(params: Any) -> Answer:
        return Answer(jax.block_until_ready(solve(params)), STEPS["energy natural gradient"])

    return fit


def optimistix_lm() -> Callable[[Any], Answer]:
    inputs = points()
    solver = optx.LevenbergMarquardt(1e-12, 1e-12)

    @jax.jit
    def solve(params: Any) -> Any:
        found = optx.least_squares(
            lambda p, args: model(p, inputs), solver, params, max_steps=STEPS["optimistix LM"], throw=False
        )
        return found.value, found.stats["num_steps"]

    def fit(params: Any) -> Answer:
        found, count = jax.block_until_ready(solve(params))
        return Answer(found, int(count))

    return fit


def adam() -> Callable[[Any], Answer]:
    """Step sizes from 1e-2 to 1e-5 on a cosine."""
    inputs = points()
    transform = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS["Adam"], alpha=1e-3))

    @jax.jit
    def solve(params: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, memory = carry
            gradient = jax.grad(lambda p: jnp.sum(model(p, inputs) ** 2))(params)
            updates, memory = transform.update(gradient, memory)
            return (optax.apply_updates(params, updates), memory), None

        return jax.lax.scan(step, (params, transform.init(params)), None, length=STEPS["Adam"])[0][0]

    def fit(params: Any) -> Answer:
        return Answer(jax.block_until_ready(solve(params)), STEPS["Adam"])

    return fit


SOLVERS: dict[str, Callable[[], Callable[[Any], Answer]]] = {
    OURS: thalweg,
    "energy natural gradient": energy_natural_gradient,
    "optimistix LM": optimistix_lm,
    "Adam": adam,
}


def measure(solver: str, num_seeds: int, report: Callable[[str], None]) -> dict:
    """One solver from the first `num_seeds` seeds; another seed before them compiles."""
    fit = SOLVERS[solver]()
    started = time.process_time()
    fit(initial_params(num_seeds))
    first, rows = time.process_time() - started, []
    for seed in range(num_seeds):
        report("run")
        started, started_cpu = time.perf_counter(), time.process_time()
        answer = fit(initial_params(seed))
        times = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - started_cpu}
        loss = float(jnp.sum(model(answer.point, points()) ** 2))
        row = {"error": float(relative_error(answer.point)), "loss": loss, "steps": answer.num_steps}
        rows.append(row | {key: round(value, 3) for key, value in times.items()} | {"message": answer.message[:60]})
        print(f"{solver}, seed {seed}: relative L2 error {row['error']:.2e}, {rows[-1]['cpu']:.1f} s", flush=True)
    return {"compile": max(0.0, first - harness.median(row["cpu"] for row in rows)), "seeds": rows}


def report(data: Mapping[str, Any]) -> str:
    """The table, made of the raw data alone."""
    rows, errors = [], []
    for solver in SOLVERS:
        entry = data["problems"].get(solver)
        if entry is None:
            continue
        if "seeds" not in entry:
            errors.append(f"- {solver}: {entry['error']}")
            continue
        reached = [row["error"] if math.isfinite(row["error"]) else math.inf for row in entry["seeds"]]
        cpu = [row["cpu"] for row in entry["seeds"]]
        figures = [f"{figure:.1e}" for figure in (min(reached), harness.median(reached), max(reached))]
        steps = harness.median(row["steps"] for row in entry["seeds"])
        seconds = [f"{harness.median(cpu):.2f}", f"{max(cpu):.2f}", f"{entry['compile']:.1f}"]
        rows.append([solver, len(reached), *figures, f"{steps:g}", *seconds])
    header = ["solver", "seeds", "least", "median", "worst", "steps", "median s", "most s", "s to compile"]
    published = ["published: energy natural gradient", "–", "1.1e-07", "2.3e-07", "1.4e-06", "–", "–", "–", "–"]
    adam_row = ["published: Adam", "–", "–", "1.1e-03", "–", "200000", "–", "–", "–"]
    lines = [
        "# Poisson's equation by a physics-informed network of 129 parameters",
        "",
        f"Relative L² error on a lattice of {EVALUATION} × {EVALUATION} points; steps: the median; processor seconds"
        " of one seed after compilation, one thread. Published: Müller and Zeinhofer, ICML 2023.",
        "",
        *harness.table(header, [*rows, published, adam_row]),
        *([""] if errors else []),
        *errors,
    ]
    return "\n".join([*lines, "", harness.described(data["environment"]), ""])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvers", help=f"some of: {', '.join(SOLVERS)}")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--reuse", action="store_true", help="keep what the file holds of other solvers")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--file", type=Path, default=harness.RESULTS / "pinn.json")
    asked = parser.parse_args(arguments)
    data = harness.load(asked.file) if asked.reuse or asked.table else {}
    data = data or {"problems": {}}
    if not asked.table:
        solvers = asked.solvers.split(",") if asked.solvers else list(SOLVERS)
        if unknown := [solver for solver in solvers if solver not in SOLVERS]:
            parser.error(f"unknown: {', '.join(unknown)}")
        data["environment"] = harness.environment()
        worker = harness.Worker("benchmarks.pinn", harness.Limits(first=600.0, run=300.0))
        for solver in solvers:
            data["problems"][solver] = worker.measure(solver, asked.seeds)
            harness.save(asked.file, data)
        worker.close()
    text = report(data)
    asked.file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
