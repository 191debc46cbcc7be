r"""Generators f of f-divergences, with the convention $D_f(p\|q) = \int q\,f(p/q)\,\mathrm dx$, $f$ convex, $f(1) = 0$.

Every smooth $f$ gives one flow with a *relative mobility* $w(r) = r^2 f''(r)$, $r = p/q$: particles move with
$v = w(r)\,(\nabla\log p - \nabla\log q)$. Any callable may stand in for a member of this module.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array


def reverse_kl(ratio: Array) -> Array:
    r"""$f = -\log r$: $D_f(p\|q) = \mathrm{KL}(q\|p)$, $w = 1$; its flow is the Fokker–Planck equation."""
    return -jnp.log(ratio)


def forward_kl(ratio: Array) -> Array:
    r"""$f = r\log r$: $\mathrm{KL}(p\|q)$, $w = r$."""
    return ratio * jnp.log(ratio)


def pearson_chi2(ratio: Array) -> Array:
    r"""$f = (r-1)^2$: $\int (p-q)^2/q$, $w = 2r^2$."""
    return (ratio - 1) ** 2


def neyman_chi2(ratio: Array) -> Array:
    r"""$f = (1-r)^2/r$: $\int (p-q)^2/p$, $w = 2/r$."""
    return (1 - ratio) ** 2 / ratio


def squared_hellinger(ratio: Array) -> Array:
    r"""$f = (\sqrt r-1)^2$: $\int(\sqrt p-\sqrt q)^2$, $w = \sqrt r/2$."""
    return (jnp.sqrt(ratio) - 1) ** 2


def jensen_shannon(ratio: Array) -> Array:
    r"""$f = \tfrac12\left(r\log r - (1+r)\log\tfrac{1+r}2\right)$: half the sum of the divergences from the middle,
    $w = r/(2(1+r))$.
    """
    return 0.5 * (ratio * jnp.log(ratio) - (1 + ratio) * jnp.log((1 + ratio) / 2))


def jeffreys(ratio: Array) -> Array:
    r"""$f = (r-1)\log r$: $\mathrm{KL}(p\|q) + \mathrm{KL}(q\|p)$, $w = 1 + r$."""
    return (ratio - 1) * jnp.log(ratio)


@dataclasses.dataclass(frozen=True)
class Alpha:
    r"""$f = (r^a - ar + a - 1)/(a(a-1))$, $w = r^a$; $a \to 0$ is reverse and $a \to 1$ forward KL."""

    exponent: float

    def __post_init__(self) -> None:
        if self.exponent in (0, 1):
            raise ValueError(
                f"`alpha({self.exponent})` is a limit: use `tw.generators.reverse_kl` for 0 and "
                "`tw.generators.forward_kl` for 1."
            )

    def __call__(self, ratio: Array) -> Array:
        a = self.exponent
        return (ratio**a - a * ratio + a - 1) / (a * (a - 1))


def alpha(exponent: float) -> Alpha:
    """The generator of the alpha-divergence with the given exponent."""
    return Alpha(float(exponent))


def relative_mobility(generator: Callable[..., Any]) -> Callable[[Array], Array]:
    r"""$w(r) = r^2 f''(r)$ of a generator, by automatic differentiation."""
    second = jax.grad(jax.grad(generator))
    return lambda ratio: ratio**2 * second(ratio)


KNOWN: dict[str, Callable[..., Any]] = {
    fn.__name__: fn
    for fn in (reverse_kl, forward_kl, pearson_chi2, neyman_chi2, squared_hellinger, jensen_shannon, jeffreys)
}
"""The named generators without parameters, by name."""


def check_generator(generator: Callable[..., Any]) -> None:
    """Raise `ValueError` unless $f(1) = 0$ and $f'' \\ge 0$ on a range of ratios; the named generators are known to
    pass.
    """
    if generator in KNOWN.values() or isinstance(generator, Alpha):
        return
    # Evaluated now even while an outer function is being traced.
    with jax.ensure_compile_time_eval():
        at_one = float(generator(jnp.asarray(1.0)))
        ratios = jnp.exp(jnp.linspace(-4.0, 4.0, 33))
        curvature = np.asarray(jax.vmap(relative_mobility(generator))(ratios))
    if not abs(at_one) < 1e-6:
        raise ValueError(f"`generator` of an f-divergence must have f(1) = 0; got f(1) = {at_one:.4g}.")
    if not np.all(curvature >= -1e-6 * np.max(np.abs(curvature))):
        worst = float(np.asarray(ratios)[np.argmin(curvature)])
        raise ValueError(
            f"`generator` of an f-divergence must be convex; its second derivative is negative at r = {worst:.3g}."
        )
