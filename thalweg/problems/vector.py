"""Functions of a vector: the classical test functions of optimisation, and a quadratic whose every step is known
exactly."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from thalweg._types import Scalar
from thalweg.problems._matrices import reflection, with_eigenvalues
from thalweg.problems._problem import VectorProblem


def rosenbrock(dim: int = 2) -> VectorProblem:
    r"""A curved valley with a flat floor.

    $$f(x) = \sum_{i=1}^{d-1} 100\,(x_{i+1} - x_i^2)^2 + (1 - x_i)^2,
    \qquad x^\ast = (1, \dots, 1), \quad f(x^\ast) = 0.$$

    From $d = 4$ on there is a second local minimum near $(-1, 1, \dots, 1)$. The start repeats $(-1.2, 1)$.

    **Source:** Rosenbrock, Comput. J. 3 (1960); start: Moré, Garbow and Hillstrom, ACM Trans. Math. Softw. 7 (1981),
    problem 1.
    """
    if dim < 2:
        raise ValueError(f"`rosenbrock` needs dim >= 2; got {dim}.")

    def fn(x: Float[Array, " dim"]) -> Scalar:
        return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)

    return VectorProblem(
        name="rosenbrock",
        source="Rosenbrock, Comput. J. 3 (1960) 175-184",
        fn=fn,
        initial=jnp.asarray(np.resize([-1.2, 1.0], dim)),
        minimiser=jnp.ones(dim),
        minimum=0.0,
    )


def quadratic(condition_number: float = 100.0, dim: int = 2) -> VectorProblem:
    r"""A quadratic bowl with eigenvalues spaced geometrically between 1 and the condition number.

    $$f(x) = \tfrac12 x^\top A x, \qquad x(t) = e^{-At}x_0,
    \qquad x_n = (I - \alpha A)^n x_0, \qquad x_n = (I + \alpha A)^{-n} x_0$$

    for the gradient flow, explicit steps and proximal steps. The axes of the bowl are oblique, and every mode starts
    with amplitude one.

    **Arguments:** `condition_number`: at least 1; `dim`.

    **Source:** linear algebra.
    """
    if not condition_number >= 1:
        raise ValueError(f"`condition_number` must be at least 1; got {condition_number}.")
    eigenvalues = np.geomspace(1.0, condition_number, dim)
    basis = reflection(dim)
    matrix = with_eigenvalues(eigenvalues)

    def fn(x: Float[Array, " dim"]) -> Scalar:
        return 0.5 * x @ jnp.asarray(matrix, x.dtype) @ x

    def combine(amplitudes: Array) -> Array:
        return jnp.asarray(basis, amplitudes.dtype) @ amplitudes

    return VectorProblem(
        name="quadratic",
        source="linear algebra",
        fn=fn,
        initial=combine(jnp.ones(dim)),
        minimiser=jnp.zeros(dim),
        minimum=0.0,
        hessian=jnp.asarray(matrix),
        exact=lambda time: combine(jnp.exp(-time * jnp.asarray(eigenvalues))),
        exact_explicit=lambda step_size, num_steps: combine((1 - step_size * jnp.asarray(eigenvalues)) ** num_steps),
        exact_proximal=lambda step_size, num_steps: combine((1 + step_size * jnp.asarray(eigenvalues)) ** -num_steps),
    )


def beale() -> VectorProblem:
    r"""Flat far away, with sharp corners.

    $$f(x, y) = (\tfrac32 - x + xy)^2 + (\tfrac94 - x + xy^2)^2 + (\tfrac{21}8 - x + xy^3)^2,
    \qquad x^\ast = (3, \tfrac12).$$

    **Source:** Beale (1958); start (1, 1): Moré, Garbow and Hillstrom, ACM Trans. Math. Softw. 7 (1981), problem 5.
    """

    def fn(point: Float[Array, " 2"]) -> Scalar:
        x, y = point
        return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2

    return VectorProblem(
        name="beale",
        source="Beale, Princeton Univ. Stat. Techn. Research Group TR 25 (1958)",
        fn=fn,
        initial=jnp.asarray([1.0, 1.0]),
        minimiser=jnp.asarray([3.0, 0.5]),
        minimum=0.0,
    )


def himmelblau() -> VectorProblem:
    r"""Four minima of equal depth; the gradient flow from the start ends at the one that is named.

    $$f(x, y) = (x^2 + y - 11)^2 + (x + y^2 - 7)^2, \qquad x^\ast = (3, 2).$$

    The others lie near $(-2.8051, 3.1313)$, $(-3.7793, -3.2832)$ and $(3.5844, -1.8481)$.

    **Source:** Himmelblau, *Applied Nonlinear Programming*, McGraw-Hill (1972).
    """

    def fn(point: Float[Array, " 2"]) -> Scalar:
        x, y = point
        return (x**2 + y - 11.0) ** 2 + (x + y**2 - 7.0) ** 2

    return VectorProblem(
        name="himmelblau",
        source="Himmelblau, Applied Nonlinear Programming (1972)",
        fn=fn,
        initial=jnp.asarray([1.0, 1.0]),
        minimiser=jnp.asarray([3.0, 2.0]),
        minimum=0.0,
    )
