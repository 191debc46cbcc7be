"""What the density is on the face between two cells, and the exponentially fitted flux there."""

import jax.numpy as jnp

from thalweg._types import Array


def logarithmic_mean(a: Array, b: Array) -> Array:
    r"""$(a - b)/(\log a - \log b)$, between the geometric and the arithmetic mean; zero where one is zero.

    With it the flux of the entropy, $-q\,\nabla\log q$, is exactly $-\nabla q$ between two cells.
    """
    tiny = jnp.finfo(a.dtype).tiny
    a, b = jnp.maximum(a, tiny), jnp.maximum(b, tiny)
    middle, relative = 0.5 * (a + b), (a - b) / (a + b)
    # Near a = b the quotient is 0/0: middle·u/atanh(u) = middle/(1 + u²/3 + u⁴/5 + …), here to rounding for |u| < 0.05.
    near = jnp.abs(relative) < 0.05
    u2 = jnp.where(near, relative, 0.0) ** 2
    series = middle / (1 + u2 * (1 / 3 + u2 * (1 / 5 + u2 * (1 / 7 + u2 * (1 / 9 + u2 * (1 / 11 + u2 / 13))))))
    difference = jnp.where(near, 1.0, jnp.log(a) - jnp.log(b))
    return jnp.where(near, series, (a - b) / difference)


def arithmetic_mean(a: Array, b: Array) -> Array:
    """Half the sum: lets mass flow into an empty cell, as fronts of finite speed must."""
    return 0.5 * (a + b)


def fitted_coefficient(drop: Array, diffusivity: Array) -> Array:
    r"""$T\,B(a/T)$ with Bernoulli's function $B(z) = z/(e^z - 1)$; for $T \to 0$ it is $\max(-a, 0)$, upwinding.

    The flux between two cells with potential drop $a = V_j - V_i$ is $T B(a/T)\,q_i - T B(-a/T)\,q_j$ (over the
    spacing): it is zero exactly when $q_j/q_i = e^{-a/T}$, and both coefficients are non-negative.

    **Source:** Scharfetter, Gummel, *Large-signal analysis of a silicon Read diode oscillator*, IEEE Trans. Electron
    Devices 16 (1969).
    """
    positive = diffusivity > 0
    safe = jnp.where(positive, diffusivity, 1.0)
    z = drop / safe
    small = jnp.abs(z) < 1e-2
    z2 = jnp.where(small, z, 0.0)
    series = 1 - 0.5 * z2 + z2**2 / 12 - z2**4 / 720
    large = jnp.where(small, 1.0, z)
    bernoulli = jnp.where(
        small, series, large / jnp.expm1(jnp.minimum(large, 700.0 if drop.dtype.itemsize > 4 else 80.0))
    )
    return jnp.where(positive, safe * bernoulli, jnp.maximum(-drop, 0.0))
