r"""The derivative of a saddle point of density and potential: the implicit function theorem.

The linearised JKO step ends at a root of its two equations, in which the pressures of the constraints are
$z = \mu/q$ and $w = \mu/(c - q)$. Linearised, and with the equation of the potential first, they are symmetric:

$$\begin{pmatrix} -H & A^\top \\ A & \tau L \end{pmatrix}\begin{pmatrix}\delta q \\ \delta\psi\end{pmatrix} = r,$$

H with all of its nonlocal terms here. BiCGStab solves it, preconditioned by the elimination of δq with the diagonal of
H and one multigrid cycle for $AH^{-1}A^\top + \tau L$. The barrier μ is a constant, so the derivative is that of the
minimiser to the tolerance of the solver. Where the linear equation is not solved to six digits it is NaN.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from thalweg._types import Array
from thalweg.schemes._implicit_derivative import solve_to_rounding
from thalweg.schemes.proximal_solvers._implicit import root

LinearMap = Callable[[Array], Array]


def saddle_point(equations: Callable[[Array], Array], found: Array, inside: Array, precondition: LinearMap) -> Array:
    """`found`, with the derivative of the root of `equations`; density and potential, and the equations of potential
    and density, are stacked. Cells that are not `inside` are constants.
    """
    found = jax.lax.stop_gradient(found)

    def closed(point: Array) -> Array:
        return jnp.where(inside, equations(jnp.where(inside, point, found)), point - found)

    def approximately(right: Array) -> Array:
        return jnp.where(inside, precondition(jnp.where(inside, right, 0)), right)

    def tangent_solve(product: LinearMap, right: Array) -> Array:
        solve = lambda product, right: solve_to_rounding(product, approximately, right)  # noqa: E731
        return jax.lax.custom_linear_solve(product, right, solve, symmetric=True)

    return root(closed, found, tangent_solve)
