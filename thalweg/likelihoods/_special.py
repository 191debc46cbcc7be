r"""Special functions whose derivatives keep their digits: in the tails, and near equality.

JAX's own are right, but their second derivatives are differences of nearly equal numbers at large arguments
($\psi_1(a) - 1/a$, $1 - A/\kappa - A^2$, $\sigma(1-\sigma)$), which is where a Fisher matrix needs them. Here they are made of
elementary functions that automatic differentiation cannot spoil.
"""

from typing import Any

import jax

from thalweg._types import Array


@jax.custom_jvp
def sigmoid(x: Array) -> Array:
    r"""$1/(1 + e^{-x})$, with the derivative $\sigma(x)\,\sigma(-x)$, which does not vanish before it must."""
    return jax.nn.sigmoid(x)


@sigmoid.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return sigmoid(x), sigmoid(x) * sigmoid(-x) * dx


@jax.custom_jvp
def softplus(x: Array) -> Array:
    r"""$\log(1 + e^x)$, whose derivative is [`sigmoid`][]."""
    return jax.nn.softplus(x)


@softplus.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return softplus(x), sigmoid(x) * dx
