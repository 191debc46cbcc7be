"""The minimisers that are compared: each a function `(fn, x0) -> call`; `call()` runs it and returns an `Answer`.

What is built once (compiled functions) is built before `call`, so that its first call compiles and later ones do not.
Every peer gets what helps it: compiled as a whole where it is written in JAX, the value and gradient together and the
exact Hessian where it is not, double precision, tight tolerances, and the same number of iterations.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import scipy.optimize

import thalweg as tw
from benchmarks._harness import Answer

MAX_STEPS = 5000
# What is written in JAX does its 5000 iterations in less on every problem; SciPy's loop is ended, and its point counts.
MAX_SECONDS = 20.0
# SciPy's own default for trust-exact and BFGS is 1e-4 and 1e-5, which is not enough for 1e-6 of f₀ − best everywhere.
GRADIENT_TOLERANCE = 1e-8
RELATIVE_TOLERANCE = 1e-10

Call = Callable[[], Answer]


def thalweg(fn: Callable[..., Any], x0: Any) -> Call:
    """`tw.minimise` as it comes, with the common number of iterations."""

    def call() -> Answer:
        path = tw.minimise(fn, x0, num_steps=MAX_STEPS)
        return Answer(path.final.state, int(path.final.num_steps), path.message)

    return call


def _scipy(fn: Callable[..., Any], x0: Any, method: str, with_hessian: bool, options: dict[str, Any]) -> Call:
    value_and_gradient = jax.jit(jax.value_and_grad(fn))
    hessian = jax.jit(jax.hessian(fn))

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = value_and_gradient(x)
        return float(value), np.asarray(gradient)

    def call() -> Answer:
        started = time.process_time()

        def callback(intermediate_result: Any) -> None:
            if time.process_time() - started > MAX_SECONDS:
                raise StopIteration

        found = scipy.optimize.minimize(
            both,
            np.asarray(x0),
            callback=callback,
            jac=True,
            hess=(lambda x: np.asarray(hessian(x))) if with_hessian else None,
            method=method,
            options={"maxiter": MAX_STEPS} | options,
        )
        return Answer(found.x, int(found.nit), str(found.message))

    return call


def trust_exact(fn: Callable[..., Any], x0: Any) -> Call:
    return _scipy(fn, x0, "trust-exact", True, {"gtol": GRADIENT_TOLERANCE})


def trust_exact_default(fn: Callable[..., Any], x0: Any) -> Call:
    return _scipy(fn, x0, "trust-exact", True, {})


def scipy_bfgs(fn: Callable[..., Any], x0: Any) -> Call:
    return _scipy(fn, x0, "BFGS", False, {"gtol": GRADIENT_TOLERANCE})


def scipy_lbfgsb(fn: Callable[..., Any], x0: Any) -> Call:
    options = {"gtol": GRADIENT_TOLERANCE, "ftol": 1e-15, "maxfun": 10 * MAX_STEPS}
    return _scipy(fn, x0, "L-BFGS-B", False, options)


def _optimistix(fn: Callable[..., Any], x0: Any, solver: Any) -> Call:
    @jax.jit
    def solve(start: Any) -> Any:
        found = optx.minimise(lambda x, args: fn(x), solver, start, max_steps=MAX_STEPS, throw=False)
        return found.value, found.stats["num_steps"], found.result == optx.RESULTS.successful

    def call() -> Answer:
        point, num_steps, converged = jax.block_until_ready(solve(x0))
        return Answer(point, int(num_steps), "converged" if converged else "did not converge")

    return call


def optimistix_bfgs(fn: Callable[..., Any], x0: Any) -> Call:
    return _optimistix(fn, x0, optx.BFGS(RELATIVE_TOLERANCE, RELATIVE_TOLERANCE))


def optimistix_lbfgs(fn: Callable[..., Any], x0: Any) -> Call:
    return _optimistix(fn, x0, optx.LBFGS(RELATIVE_TOLERANCE, RELATIVE_TOLERANCE))


def optimistix_cg(fn: Callable[..., Any], x0: Any) -> Call:
    return _optimistix(fn, x0, optx.NonlinearCG(RELATIVE_TOLERANCE, RELATIVE_TOLERANCE))


def optax_lbfgs(fn: Callable[..., Any], x0: Any) -> Call:
    """The loop of optax's documentation around `optax.lbfgs()` and its zoom line search; it also ends where a step no
    longer moves the point, since rounding keeps some gradients above any tolerance."""
    transform = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(fn)

    @jax.jit
    def solve(start: Any) -> Any:
        def step(carry: Any) -> Any:
            x, memory, count, _, _ = carry
            value, gradient = value_and_gradient(x, state=memory)
            updates, memory = transform.update(gradient, memory, x, value=value, grad=gradient, value_fn=fn)
            new = optax.apply_updates(x, updates)
            small = jnp.linalg.norm(optax.tree.get(memory, "grad")) <= GRADIENT_TOLERANCE
            return new, memory, count + 1, small, jnp.all(new == x)

        def go_on(carry: Any) -> Any:
            _, _, count, small, still = carry
            return (count < MAX_STEPS) & ~small & ~still

        carry = (start, transform.init(start), jnp.asarray(0), jnp.asarray(False), jnp.asarray(False))
        x, _, count, small, _ = jax.lax.while_loop(go_on, step, carry)
        return x, count, small

    def call() -> Answer:
        point, num_steps, converged = jax.block_until_ready(solve(x0))
        return Answer(point, int(num_steps), "converged" if converged else "did not converge")

    return call


SOLVERS: dict[str, Callable[..., Call]] = {
    "thalweg": thalweg,
    "trust-exact": trust_exact,
    "trust-exact (default gtol)": trust_exact_default,
    "scipy BFGS": scipy_bfgs,
    "scipy L-BFGS-B": scipy_lbfgsb,
    "optimistix BFGS": optimistix_bfgs,
    "optimistix LBFGS": optimistix_lbfgs,
    "optimistix NonlinearCG": optimistix_cg,
    "optax.lbfgs": optax_lbfgs,
}
