r"""The convex conjugate $e^*$ of an internal energy: what turns a pressure into a density.

$$q = (e^*)'(p), \qquad e(q) = Tq\log q, \quad \frac{a\,q^m}{m-1}, \quad\text{either with } q \le c.$$
"""

import equinox as eqx
import jax.numpy as jnp

from thalweg._types import Array, Scalar
from thalweg.energies import Decomposition, PorousMedium

# exp of more overflows.
_LARGEST_EXPONENT = 600.0


class Conjugate(eqx.Module):
    r"""$e(q) = Tq\log q$ (`exponent` is `None`) or $e(q) = a q^m/(m-1)$ of factor `scale`, below a `ceiling`."""

    scale: Array
    ceiling: Array
    exponent: float | None = eqx.field(static=True)

    @classmethod
    def of(cls, structure: Decomposition, softness: Scalar) -> "Conjugate":
        r"""Of an energy that `serves`. A ceiling alone is a corner of $e^*$, and is rounded by $e(q) = s q^2$ with
        $2sc$ = `softness`, a pressure.
        """
        dtype = softness.dtype
        ceiling = jnp.asarray(jnp.inf if structure.ceiling is None else structure.ceiling, dtype)
        if structure.temperature is not None:
            return cls(jnp.asarray(structure.temperature, dtype), ceiling, None)
        if not structure.local:
            return cls(softness / (2 * ceiling), ceiling, 2.0)
        (term,) = structure.local
        assert isinstance(term.energy, PorousMedium)
        return cls(jnp.asarray(term.scale, dtype), ceiling, float(term.energy.exponent))

    @staticmethod
    def serves(structure: Decomposition) -> bool:
        """Whether the local terms are one entropy, one porous medium with m > 1, or a ceiling alone."""
        if structure.temperature is not None:
            return not structure.local
        if not structure.local:
            return structure.ceiling is not None
        terms = [term.energy for term in structure.local]
        return len(terms) == 1 and isinstance(terms[0], PorousMedium) and terms[0].exponent > 1

    @property
    def has_vacuum(self) -> bool:
        """Whether the density is zero below some pressure."""
        return self.exponent is not None

    def value(self, density: Array) -> Array:
        """e(q)."""
        if self.exponent is None:
            return self.scale * density * jnp.log(jnp.maximum(density, jnp.finfo(density.dtype).tiny))
        return self.scale * density**self.exponent / (self.exponent - 1)

    def derivative(self, density: Array, least: float = 1e-14) -> Array:
        """e'(q); for an entropy, of no less than `least` of the largest density."""
        if self.exponent is None:
            return self.scale * (jnp.log(jnp.maximum(density, least * jnp.max(density))) + 1)
        m = self.exponent
        return self.scale * (m / (m - 1)) * density ** (m - 1)

    def compliance(self, density: Array) -> Array:
        """1/e'' at a positive density, as if there were no ceiling."""
        if self.exponent is None:
            return density / self.scale
        return density ** (2 - self.exponent) / (self.scale * self.exponent)

    def density(self, pressure: Array) -> Array:
        r"""$(e^*)'$."""
        if self.exponent is None:
            free = jnp.exp(jnp.minimum(pressure / self.scale - 1, _LARGEST_EXPONENT))
        else:
            m = self.exponent
            free = (jnp.maximum(pressure, 0) * ((m - 1) / m) / self.scale) ** (1 / (m - 1))
        return jnp.minimum(free, self.ceiling)

    def conjugate(self, pressure: Array, density: Array) -> Array:
        r"""$e^*(p) = pq - e(q)$ at its own density."""
        p = pressure if self.exponent is None else jnp.maximum(pressure, 0)
        return p * density - self.value(density)
