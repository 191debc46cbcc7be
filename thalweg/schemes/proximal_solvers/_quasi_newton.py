"""Proximal steps of many unknowns, by a limited-memory quasi-Newton method."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx

from thalweg._types import Array, Flag, Scalar


class QuasiNewton(eqx.Module):
    r"""The proximal step by L-BFGS (from optimistix), for more unknowns than a dense Hessian can hold.

    **Arguments:** `tolerance`: relative and absolute, on the point and the value; `max_steps`.
    """

    tolerance: float = eqx.field(static=True, default=1e-8)
    max_steps: int = eqx.field(static=True, default=1000)

    def minimise(self, fn: Callable[[Array], Scalar], start: Array, size: Scalar) -> tuple[Array, Scalar, Flag]:
        """The minimiser, the largest entry of the gradient left, and whether it converged; `size` is not used."""
        solver = optx.LBFGS(rtol=self.tolerance, atol=self.tolerance)
        solution = optx.minimise(lambda y, _: fn(y), solver, start, max_steps=self.max_steps, throw=False)
        residual = jnp.max(jnp.abs(jax.grad(fn)(solution.value)))
        return solution.value, residual, solution.result == optx.RESULTS.successful
