r"""The exponential of a symmetric generator of a Markov process on a grid, by Chebyshev polynomials.

$$e^{-tA}u \approx \sum_{k=0}^m c_k\,T_k(X)\,u, \qquad X = I - \tfrac tz A, \qquad c_k = (2 - \delta_{k0})\,
e^{-z}I_k(z), \quad z = \tfrac12\rho t,$$

for a symmetric matrix with spectrum in $[0, \rho]$. The coefficients fall like $e^{-k^2/2z}$, so $\sqrt{2z\log(1/
\varepsilon)}$ products with $A$ do for an error $\varepsilon$ in norm, where explicit steps need $z$ of them: all of
time is integrated at once, exactly to rounding.

Miller's recurrence, $I_{k-1} = I_{k+1} + (2k/z) I_k$, gives the coefficients from the last to the first, up to a
factor; Clenshaw's rule, $b_k = c_k u + 2X b_{k+1} - b_{k+2}$, wants them in just that order. So nothing is stored but
three vectors, and $t$ may be anything. The factor is divided out at the end by the sum of the coefficients, which is
the value of the polynomial at $X = I$: the polynomial is *exactly* one on the kernel of $A$. What is steady stays
steady, and mass stays.

The derivative by the matrix is a sum over $k$ of products of $T_k u$ with the vectors of Clenshaw's rule for the
adjoint. Both recurrences can be run backwards without loss ($|X| \le 1$), so they are made anew instead of stored.

**Source:** Tal-Ezer, Kosloff, J. Chem. Phys. 81 (1984); Clenshaw, Math. Comp. 9 (1955). Number of terms: $c_k$ is at
most twice the probability that a random walk of a Poisson number of steps of mean z is at k (Bernstein's inequality).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array, Scalar
from thalweg.states import shifted, shifted_back


class Links(NamedTuple):
    """Which cells are joined: `offsets` from a cell to its partners, one for each array of faces (the first number
    that is not zero is positive), and whether each axis is `periodic`.
    """

    offsets: tuple[tuple[int, ...], ...]
    periodic: tuple[bool, ...]

    @classmethod
    def of_faces(cls, periodic: tuple[bool, ...]) -> "Links":
        """Each cell with the next one along each axis."""
        dim = len(periodic)
        return cls(tuple(tuple(int(i == axis) for i in range(dim)) for axis in range(dim)), periodic)


class SymmetricGenerator(NamedTuple):
    """A symmetric matrix on the cells of a grid: `diagonal` of the grid's shape, and for each offset minus its entries
    (≥ 0, of the grid's shape; entry i joins cell i and cell i + offset, which wraps; zero where it must not).
    """

    diagonal: Array
    faces: tuple[Array, ...]

    def spectral_bound(self, links: Links) -> Scalar:
        """Gershgorin's bound on the largest eigenvalue."""
        rows = self.diagonal
        for offset, face in zip(links.offsets, self.faces, strict=True):
            rows = rows + face + shifted_back(face, offset)
        return jnp.max(rows)

    def times(self, values: Array, links: Links) -> Array:
        """The product of the matrix with the values on the cells."""
        product = self.diagonal * values
        for offset, face in zip(links.offsets, self.faces, strict=True):
            product = product - face * shifted(values, offset) - shifted_back(face * values, offset)
        return product


def num_terms(argument: Scalar, tolerance: float) -> Array:
    """How many terms (an even number) leave less than `tolerance` of the sum of the coefficients, for the argument
    z.
    """
    digits = math.log(4 / tolerance)
    found = digits / 3 + jnp.sqrt(digits**2 / 9 + 2 * digits * argument)
    return 2 * jnp.ceil(found / 2).astype(jnp.int32)


def argument_of(generator: SymmetricGenerator, duration: Scalar, links: Links) -> Scalar:
    """The argument z; not less than a hundredth, below which Miller's recurrence would overflow."""
    return jnp.maximum(0.5 * generator.spectral_bound(links) * duration, 0.01)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def exponential(
    generator: SymmetricGenerator, duration: Scalar, values: Array, tolerance: float, links: Links
) -> Array:
    r"""$e^{-tA}u$ for the values $u$ on the cells, to `tolerance` relative to the norm of $u$."""
    z = argument_of(generator, duration, links)
    return _clenshaw(_Doubled.of(generator, duration / z, links), z, values, tolerance)


class _Doubled(NamedTuple):
    """2X in a flat layout: a partner is one stride away, and what wraps is done apart.

    Slices of one padded row are several times faster than rolled arrays.
    """

    diagonal: Array
    faces: tuple[Array, ...]
    wraps: tuple[Array | None, ...]
    shape: tuple[int, ...]
    links: Links

    @classmethod
    def of(cls, generator: SymmetricGenerator, scale: Scalar, links: Links) -> "_Doubled":
        """2X with X = I − scale · A."""
        shape = generator.diagonal.shape
        faces, wraps = [], []
        for offset, face in zip(links.offsets, generator.faces, strict=True):
            inside = jnp.asarray(_stays_inside(shape, offset), face.dtype)
            doubled = 2 * scale * face
            crosses = any(k and wraps_ for k, wraps_ in zip(offset, links.periodic, strict=True))
            wraps.append(doubled * (1 - inside) if crosses else None)
            # Padded in front by a stride, so that the entry towards the partner before is a slice too.
            faces.append(jnp.pad((doubled * inside).reshape(-1), (_stride(shape, offset), 0)))
        return cls((2 - 2 * scale * generator.diagonal).reshape(-1), tuple(faces), tuple(wraps), shape, links)

    @property
    def halo(self) -> int:
        """How far a partner may be away."""
        return max(_stride(self.shape, offset) for offset in self.links.offsets)

    @property
    def size(self) -> int:
        """The number of cells."""
        return math.prod(self.shape)

    def padded(self, row: Array) -> Array:
        """A row of values with room for the partners of its ends."""
        return jnp.pad(row, (self.halo, self.halo))

    def bare(self, padded: Array) -> Array:
        """The row without its room."""
        return padded[self.halo : self.halo + self.size]

    def replaced(self, padded: Array, row: Array) -> Array:
        """The room of one row with another row in it."""
        return jax.lax.dynamic_update_slice(padded, row, (self.halo,))

    def times(self, padded: Array) -> Array:
        """2X times a padded row, as a bare one."""
        halo, size = self.halo, self.size
        product = self.diagonal * padded[halo : halo + size]
        for offset, face in zip(self.links.offsets, self.faces, strict=True):
            stride = _stride(self.shape, offset)
            product = product + face[stride:] * padded[halo + stride : halo + stride + size]
            product = product + face[:size] * padded[halo - stride : halo - stride + size]
        if all(wrap is None for wrap in self.wraps):
            return product
        values, cells = self.bare(padded).reshape(self.shape), product.reshape(self.shape)
        for offset, wrap in zip(self.links.offsets, self.wraps, strict=True):
            if wrap is None:
                continue
            if sum(map(abs, offset)) == 1:
                # One layer of cells at each end of the axis.
                axis = offset.index(1)
                first, last = (slice(None),) * axis + (slice(0, 1),), (slice(None),) * axis + (slice(-1, None),)
                cells = cells.at[first].add(wrap[last] * values[last])
                cells = cells.at[last].add(wrap[last] * values[first])
            else:
                cells = cells + wrap * shifted(values, offset) + shifted_back(wrap * values, offset)
        return cells.reshape(-1)


def _stride(shape: tuple[int, ...], offset: tuple[int, ...]) -> int:
    return sum(k * math.prod(shape[axis + 1 :]) for axis, k in enumerate(offset))


def _stays_inside(shape: tuple[int, ...], offset: tuple[int, ...]) -> np.ndarray:
    """Whether the partner of each cell lies in the grid without wrapping."""
    inside = np.ones(shape, bool)
    for axis, (n, k) in enumerate(zip(shape, offset, strict=True)):
        there = np.arange(n) + k
        inside &= ((there >= 0) & (there < n)).reshape(tuple(n if i == axis else 1 for i in range(len(shape))))
    return inside


def _clenshaw(twice: _Doubled, z: Scalar, values: Array, tolerance: float) -> Array:
    start = values.reshape(-1)

    def down(carry: Any) -> Any:
        # Two at a time: the vectors change places without being copied.
        k, miller, total, b1, b2 = carry
        row = 2 * miller[0] * start + twice.times(b1) - twice.bare(b2)
        miller, total = _next(miller, k, z), total + 2 * miller[0]
        b2 = twice.replaced(b2, row)
        row = 2 * miller[0] * start + twice.times(b2) - twice.bare(b1)
        miller, total = _next(miller, k - 1, z), total + 2 * miller[0]
        return k - 2, miller, total, twice.replaced(b1, row), b2

    rest = twice.padded(jnp.zeros_like(start))
    zero = jnp.zeros((), values.dtype)
    begin = (num_terms(z, tolerance), _first(zero), zero, rest, rest)
    _, miller, total, b1, b2 = jax.lax.while_loop(lambda carry: carry[0] > 0, down, begin)
    found = miller[0] * start + 0.5 * twice.times(b1) - twice.bare(b2)
    return (found / (total + miller[0])).reshape(values.shape)


def _first(zero: Scalar) -> tuple[Scalar, Scalar]:
    """I_m and I_{m+1} up to a factor: small, for the others are larger by up to a hundred digits."""
    return zero + jnp.finfo(zero.dtype).tiny ** 0.5, zero


def _next(miller: tuple[Scalar, Scalar], k: Array, z: Scalar) -> tuple[Scalar, Scalar]:
    return miller[1] + (2 * k.astype(z.dtype) / z) * miller[0], miller[0]


def _forward(generator: SymmetricGenerator, duration: Scalar, values: Array, tolerance: float, links: Links) -> Any:
    found = exponential(generator, duration, values, tolerance, links)
    return found, (generator, duration, values, found)


def _backward(tolerance: float, links: Links, saved: Any, cotangent: Array) -> Any:
    generator, duration, values, found = saved
    z = argument_of(generator, duration, links)
    scale = duration / z
    twice = _Doubled.of(generator, scale, links)
    adjoint = cotangent.reshape(-1)
    # The vectors b₁, b₂ of the adjoint, and all coefficients, which are needed in the other order now.
    coefficients, total, b1, b2 = _recorded(twice, z, adjoint, tolerance)
    b1, b2 = b1 / total, b2 / total
    start = values.reshape(-1)

    # d⟨λ, p(X)u⟩ = Σ_k (2 − δ_k0) ⟨b_{k+1}, dX T_k u⟩.
    def up(carry: Any) -> Any:
        k, t0, t1, b1, b2, gathered = carry
        weight = jnp.where(k == 0, 1, 2).astype(values.dtype)
        gathered = [sum_ + weight * part for sum_, part in zip(gathered, _products(twice, b1, t0), strict=True)]
        following = jnp.where(k == 0, 0.5, 1) * twice.times(twice.padded(t0)) - jnp.where(k == 0, 0, 1) * t1
        # b_{k+3} from b_{k+1} and b_{k+2}: Clenshaw's rule the other way round.
        b3 = 2 * coefficients[k + 1] / total * adjoint + twice.times(twice.padded(b2)) - b1
        return k + 1, following, t0, b2, b3, gathered

    blank = [jnp.zeros_like(start)] * (1 + len(generator.faces))
    begin = (jnp.asarray(0, jnp.int32), start, jnp.zeros_like(start), b1, b2, blank)
    terms = jnp.minimum(num_terms(z, tolerance), coefficients.shape[0] - 1)
    *_, gathered = jax.lax.while_loop(lambda carry: carry[0] < terms, up, begin)
    shape = generator.diagonal.shape
    # dX = −scale dA: its diagonal, and minus its entries across the faces.
    by_diagonal = -scale * gathered[0].reshape(shape)
    by_faces = tuple(
        scale * part.reshape(shape) * _may_join(shape, offset, links.periodic)
        for offset, part in zip(links.offsets, gathered[1:], strict=True)
    )
    by_duration = -jnp.sum(cotangent * generator.times(found, links))
    by_values = exponential(generator, duration, cotangent, tolerance, links)
    return SymmetricGenerator(by_diagonal, by_faces), by_duration, by_values


# Longer sums than this are differentiated without their last terms; durations are cut before.
MAX_TERMS = 1 << 14


def _recorded(twice: _Doubled, z: Scalar, start: Array, tolerance: float) -> Any:
    """Clenshaw's rule once more, with its coefficients I_k written down."""

    def down(carry: Any) -> Any:
        k, miller, total, b1, b2, written = carry
        written = written.at[k].set(miller[0])
        row = 2 * miller[0] * start + twice.times(twice.padded(b1)) - b2
        return k - 1, _next(miller, k, z), total + 2 * miller[0], row, b1, written

    rest, zero = jnp.zeros_like(start), jnp.zeros((), start.dtype)
    written = jnp.zeros((MAX_TERMS + 2,), start.dtype)
    terms = jnp.minimum(num_terms(z, tolerance), MAX_TERMS)
    begin = (terms, _first(zero), zero, rest, rest, written)
    _, miller, total, b1, b2, written = jax.lax.while_loop(lambda carry: carry[0] > 0, down, begin)
    return written.at[0].set(miller[0]), total + miller[0], b1, b2


def _products(twice: _Doubled, left: Array, right: Array) -> list[Array]:
    """The entries of a symmetric outer product on the diagonal and for each offset."""
    a, b = left.reshape(twice.shape), right.reshape(twice.shape)
    joined = [(a * shifted(b, offset) + b * shifted(a, offset)).reshape(-1) for offset in twice.links.offsets]
    return [left * right, *joined]


def _may_join(shape: tuple[int, ...], offset: tuple[int, ...], periodic: tuple[bool, ...]) -> np.ndarray:
    """One where a cell has a partner, which may lie across a periodic joint, zero where there is none."""
    walled = tuple(0 if wraps else k for k, wraps in zip(offset, periodic, strict=True))
    return _stays_inside(shape, walled).astype(float)


exponential.defvjp(_forward, _backward)
