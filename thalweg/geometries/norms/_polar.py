r"""The polar factor $U V^\top$ of a matrix $G = U S V^\top$: the steepest direction in the spectral norm.

Two ways. By a singular value decomposition, to rounding, with the derivative of the factor written down (that of the
singular vectors does not exist where two singular values are equal; that of their product does). Or by Newton–Schulz
iterations, products of matrices only, where singular values below a bound are not quite brought to one: what that costs
is told by `gap`.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Scalar

# Beyond this scaling the largest singular values fall below 0.1, and their rounding grows with them (Chen, Chow 2014).
_LARGEST_SCALING = 1.69770248526
# Products in full precision on accelerators too: the bound ‖X‖ ≤ 1 rests on it.
_PRECISION = jax.lax.Precision.HIGHEST


class PolarGap(NamedTuple):
    r"""How far an approximate polar factor $X$ is from the best direction; both are zero for the exact one.

    `alignment` bounds $1 - \langle G, X\rangle/\|G\|_{\mathrm{nuc}}$, the share of the steepest slope that is missed;
    `excess` bounds $|\|X\| - 1|$ in the spectral norm. Both hold to rounding.
    """

    alignment: Scalar
    excess: Scalar


class AbstractPolar(eqx.Module):
    """A way to the polar factor, and to the two norms that go with it."""

    @abc.abstractmethod
    def factor(self, matrix: Array) -> Array:
        r"""$U V^\top$ of $U S V^\top$, over the singular values that are not zero to rounding."""

    @abc.abstractmethod
    def largest(self, matrix: Array) -> Scalar:
        """The largest singular value."""

    @abc.abstractmethod
    def sum(self, matrix: Array) -> Scalar:
        """The sum of the singular values, or what the factor reaches of it."""

    @abc.abstractmethod
    def gap(self, matrix: Array) -> PolarGap:
        """How far `factor(matrix)` is from the exact one."""


class PolarBySVD(AbstractPolar):
    """The polar factor by a singular value decomposition, to rounding; singular values below rounding count as zero.

    Differentiable (also where singular values are equal) at matrices of full rank; at others the null space is taken as
    staying what it is.
    """

    def factor(self, matrix: Array) -> Array:
        return _polar_factor(matrix)

    def largest(self, matrix: Array) -> Scalar:
        return jnp.max(jnp.linalg.svd(matrix, compute_uv=False))

    def sum(self, matrix: Array) -> Scalar:
        return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False))

    def gap(self, matrix: Array) -> PolarGap:
        zero = jnp.zeros((), matrix.dtype)
        return PolarGap(zero, zero)


class NewtonSchulz(AbstractPolar):
    r"""The polar factor by scaled cubic Newton–Schulz iterations, $X \leftarrow \tfrac32\mu X - \tfrac12\mu^3 X X^\top
    X$.

    If all singular values of $X$ lie in $[\ell, 1]$ then $\mu^2 = 3/(1 + \ell + \ell^2)$ brings them into $[\ell^+,
    1]$ with the largest possible $\ell^+ = \tfrac32\mu\ell - \tfrac12\mu^3\ell^3$; with $\mu \le 1.698$, for the sake
    of rounding, it is at first $2.55\,\ell$. They never exceed one, so $\langle G, X\rangle$ is a lower bound of the
    nuclear norm, and the direction keeps to the unit ball. The largest singular value is found by repeated squaring
    of the Gram matrix, off by at most $\ln(n)/2^{22}$ of itself (float32; less in float64), and only where others are
    as close as that.

    **Arguments:** `smallest`: the singular value, relative to the largest ones, from which on all are brought to one;
    `num_steps`: iterations, two products of matrices each. The defaults leave nothing but rounding above `smallest`.

    **Raises:** `ValueError` unless `0 < smallest < 1` and `num_steps >= 1`.

    **Source:** Chen, Chow, *A stable scaling of Newton–Schulz for improving the sign function computation* (2014).
    """

    smallest: float = eqx.field(static=True, default=1e-3)
    num_steps: int = eqx.field(static=True, default=12)

    def __check_init__(self) -> None:
        if not 0 < self.smallest < 1:
            raise ValueError(f"`smallest` of `NewtonSchulz` must lie between 0 and 1; got {self.smallest}.")
        if self.num_steps < 1:
            raise ValueError(f"`num_steps` of `NewtonSchulz` must be at least 1; got {self.num_steps}.")

    def factor(self, matrix: Array) -> Array:
        wide = _wide(matrix)
        x, gram = _normalised(wide)
        scalings = [mu for mu, _ in self._schedule()]

        def iterate(x: Array, mu: Scalar) -> tuple[Array, None]:
            return 1.5 * mu * x - 0.5 * mu**3 * _product(_product(x, x.T), x), None

        # The first one has its Gram matrix; the others are a loop, so that what is compiled does not grow with them.
        x = 1.5 * scalings[0] * x - 0.5 * scalings[0] ** 3 * _product(gram, x)
        x, _ = jax.lax.scan(iterate, x, jnp.asarray(scalings[1:], x.dtype))
        return x if wide.shape == matrix.shape else x.T

    def _schedule(self) -> list[tuple[float, float]]:
        """Each scaling, and the bound from below after it."""
        lowest, steps = self.smallest, []
        for _ in range(self.num_steps):
            mu = min(_LARGEST_SCALING, (3 / (1 + lowest + lowest**2)) ** 0.5)
            lowest = min(1.5 * mu * s - 0.5 * mu**3 * s**3 for s in (lowest, 1.0))
            steps.append((mu, min(lowest, 1.0)))
        return steps

    def largest(self, matrix: Array) -> Scalar:
        _, gram = _normalised(_wide(matrix))
        count = 20 if matrix.dtype.itemsize < 8 else 40

        def square(_: Any, power: Array) -> Array:
            power = _product(power, power)
            return power / _nonzero(jnp.max(jnp.abs(power)))

        power = jax.lax.fori_loop(0, count, square, gram)
        # Every column is nearly in the top eigenspace; the longest is the least troubled by rounding.
        column = power[:, jnp.argmax(jnp.sum(power**2, axis=0))]
        direction = column / _nonzero(jnp.linalg.norm(column))
        image = jnp.matmul(direction, _wide(matrix) / _size(matrix), precision=_PRECISION)
        return _size(matrix) * jnp.linalg.norm(image)

    def sum(self, matrix: Array) -> Scalar:
        return jnp.sum(matrix * self.factor(matrix))

    def gap(self, matrix: Array) -> PolarGap:
        r"""How far the factor is from the best direction, without a decomposition.

        With singular values $s_i$ of $G$ and $q_i \le 1$ of $X$: $\sum s_i(1 - q_i) \le \sum s_i(1 - q_i^2) \le
        \sqrt{r}\,\|G - X X^\top G\|_F$.
        """
        wide = _wide(matrix) / _size(matrix)
        factor = _wide(self.factor(matrix))
        missed = wide - _product(factor, _product(factor.T, wide))
        bound = wide.shape[0] ** 0.5 * jnp.linalg.norm(missed)
        reached = jnp.sum(wide * factor)
        # The largest singular value lies above `smallest`, so its image lies above the last bound.
        lowest = jnp.asarray(1 - self._schedule()[-1][1], matrix.dtype)
        return PolarGap(bound / _nonzero(reached + bound), jnp.where(reached > 0, lowest, 0))


def _wide(matrix: Array) -> Array:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _size(matrix: Array) -> Scalar:
    return _nonzero(jnp.max(jnp.abs(matrix)))


def _nonzero(value: Array) -> Array:
    return jnp.where(value > 0, value, 1)


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=_PRECISION)


def _normalised(wide: Array) -> tuple[Array, Array]:
    """The matrix with no singular value above one, and its Gram matrix."""
    # ‖XXᵀ‖_F^½, the Schatten 4-norm, is a bound as safe as the Frobenius norm and up to r^¼ closer, at no cost: the
    # first iteration needs the Gram matrix anyway.
    x = wide / _size(wide)
    x = x / _nonzero(jnp.linalg.norm(x))
    gram = _product(x, x.T)
    bound = _nonzero(jnp.sqrt(jnp.linalg.norm(gram)))
    return x / bound, gram / bound**2


@jax.custom_jvp
def _polar_factor(matrix: Array) -> Array:
    left, kept, right = _decomposed(matrix)
    return (left * jnp.where(kept > 0, 1, 0).astype(matrix.dtype)[None]) @ right


def _decomposed(matrix: Array) -> tuple[Array, Array, Array]:
    """The decomposition, with singular values that rounding alone made non-zero set to zero."""
    left, singular, right = jnp.linalg.svd(matrix, full_matrices=False)
    cut = jnp.finfo(matrix.dtype).eps * max(matrix.shape) * singular[0]
    return left, jnp.where(singular > cut, singular, 0), right


@_polar_factor.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # Q = U Vᵀ with G = Q H: of dG = dQ H + Q dH the antisymmetric part of Uᵀ dG V is (s_i + s_j)/2 times that of
    # Uᵀ dQ V; what lies outside the columns of U or the rows of Vᵀ is dQ H = (1 − UUᵀ) dG, and the same from the right.
    (matrix,), (change,) = primals, tangents
    left, singular, right = _decomposed(matrix)
    kept = singular > 0
    one = jnp.where(kept, 1, 0).astype(matrix.dtype)
    left, right = left * one[None], right * one[:, None]
    inverse = jnp.where(kept, 1 / jnp.where(kept, singular, 1), 0)
    sums = singular[:, None] + singular[None]
    inverse_sums = jnp.where(sums > 0, 1 / jnp.where(sums > 0, sums, 1), 0) * one[:, None] * one[None]
    inner = left.T @ change @ right.T
    turned = left @ ((inner - inner.T) * inverse_sums) @ right
    above = change @ right.T
    above = ((above - left @ (left.T @ above)) * inverse[None]) @ right
    beside = left.T @ change
    beside = left @ ((beside - (beside @ right.T) @ right) * inverse[:, None])
    return left @ right, turned + above + beside
