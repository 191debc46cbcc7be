r"""The exponential of a symmetric generator of a Markov process on a grid, by Chebyshev polynomials.

$$e^{-tA}u \approx \sum_{k=0}^m c_k\,T_k(X)\,u, \qquad X = I - \tfrac tz A, \qquad c_k = (2 - \delta_{k0})\,
e^{-z}I_k(z), \quad z = \tfrac12\rho t,$$

for a symmetric matrix with spectrum in $[0, \rho]$. The coefficients fall like $e^{-k^2/2z}$, so $\sqrt{2z\log(1/
\varepsilon)}$ products with $A$ do for an error $\varepsilon$ in norm, where explicit steps need $z$ of them: all of
time is integrated at once, exactly to rounding.

Miller's recurrence, $I_{k-1} = I_{k+1} + (2k/z) I_k$, gives the coefficients from the last to the first, up to a
factor; Clenshaw's rule, $b_k = c_k u + 2X b_{k+1} - b_{k+2}$, wants them in just that order. So nothing is stored but
four vectors, and $t$ may be anything. The factor is divided out at the end by the sum of the coefficients, which is
the value of the polynomial at $X = I$: the polynomial is *exactly* one on the kernel of $A$. What is steady stays
steady, and mass stays.

A product needs seven arrays for a dozen operations a cell, so a processor waits for its memory. There the cells lie in
one row, cut into blocks, and several steps of the recurrence follow each other over the row, each a little behind the
one before: step $j + 1$ of a cell needs step $j$ no farther than its partners. What a block needs stays in the cache,
three arrays that are overwritten in turn are enough, and nothing is computed twice.

The derivative by the matrix is a sum over $k$ of products of $T_k u$ with the vectors of Clenshaw's rule for the
adjoint. Both recurrences can be run backwards without loss ($|X| \le 1$), so they are made anew instead of stored.

**Source:** Tal-Ezer, Kosloff, J. Chem. Phys. 81 (1984); Clenshaw, Math. Comp. 9 (1955). Number of terms: $c_k$ is
twice the probability that a random walk of a Poisson number of steps of mean z is at k (Bernstein's inequality, with
the factor in front of the Gaussian's tail). Steps that follow each other over a row: Wonnacott, *Time skewing*, Int. J.
Parallel Program. 30 (2002).
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


# Steps of the recurrence that follow each other over the row, and the cells of a block: what seven arrays hold of a
# block and its tail is 0.8 MB for rows of 1024 cells. Half or twice of these is no faster there. A multiple of three,
# after which the arrays have changed places in a circle.
_DEPTH, _BLOCK = 6, 8192


def num_terms(argument: Scalar, tolerance: float) -> Array:
    """How many terms (a multiple of six) leave less than `tolerance` of the sum of the coefficients, for the argument
    z.
    """
    digits = math.log(2 / tolerance)
    # The tail of a Gaussian beyond x deviations is less than its density there over x. With the digits in Bernstein's
    # inequality reduced by that, what is left is below the tolerance for all z ≤ 3e6 and tolerances from 1e-3 to 1e-14.
    digits -= math.log(math.sqrt(2 * math.pi) * 0.9 * math.sqrt(2 * digits))
    found = digits / 3 + jnp.sqrt(digits**2 / 9 + 2 * digits * argument)
    return _DEPTH * jnp.ceil(found / _DEPTH).astype(jnp.int32)


def argument_of(generator: SymmetricGenerator, duration: Scalar, links: Links) -> Scalar:
    """The argument z; not less than a hundredth, below which Miller's recurrence would overflow."""
    return jnp.maximum(0.5 * generator.spectral_bound(links) * duration, 0.01)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def exponential(
    generator: SymmetricGenerator, duration: Scalar, values: Array, tolerance: float, links: Links
) -> Array:
    r"""$e^{-tA}u$ for the values $u$ on the cells, to `tolerance` relative to the norm of $u$."""
    z = argument_of(generator, duration, links)
    whole = functools.partial(_clenshaw, tolerance=tolerance, row=_Row.whole(values.shape, links))
    in_blocks = functools.partial(_clenshaw, tolerance=tolerance, row=_Row.in_blocks(values.shape, links))
    return jax.lax.platform_dependent(generator, duration / z, z, values, cpu=in_blocks, default=whole)


class _Row(NamedTuple):
    """The cells in one row, where a partner is one stride away.

    A periodic axis is continued beyond its ends, so far that `steps` products spoil no cell of the grid. `blocks` is
    how many times `block` cells are done one after the other; step j is `lag` · j cells behind.
    """

    shape: tuple[int, ...]
    links: Links
    steps: int
    blocks: int
    block: int
    lag: int

    @classmethod
    def whole(cls, shape: tuple[int, ...], links: Links, steps: int = 3) -> "_Row":
        """All cells at once."""
        row = cls(shape, links, steps, 1, 0, 0)
        return row._replace(block=row.size)

    @classmethod
    def in_blocks(cls, shape: tuple[int, ...], links: Links) -> "_Row":
        """In blocks that stay in the cache; two at least, for a place that the compiler knows makes its loop slower."""
        row = cls.whole(shape, links, _DEPTH)
        cells = row.size + row.halo * (_DEPTH - 1)
        blocks = max(2, round(cells / _BLOCK))
        return row._replace(blocks=blocks, block=-(-cells // blocks), lag=row.halo)

    @property
    def continued(self) -> tuple[int, ...]:
        """By how many cells each axis is continued, before and behind."""
        reach = [max(abs(offset[axis]) for offset in self.links.offsets) for axis in range(len(self.shape))]
        return tuple(wraps * self.steps * r for r, wraps in zip(reach, self.links.periodic, strict=True))

    @property
    def extents(self) -> tuple[int, ...]:
        """The shape with what continues it. Where the last axis is a multiple of a page, empty cells are added, or all
        rows of cells would compete for the same places of the cache.
        """
        extents = [n + 2 * more for n, more in zip(self.shape, self.continued, strict=True)]
        return (*extents[:-1], extents[-1] + (8 if len(extents) > 1 and extents[-1] % 256 == 0 else 0))

    @property
    def size(self) -> int:
        """The number of cells with those."""
        return math.prod(self.extents)

    @property
    def strides(self) -> tuple[int, ...]:
        """How far a partner is away, for each offset."""
        return tuple(
            sum(k * math.prod(self.extents[axis + 1 :]) for axis, k in enumerate(offset))
            for offset in self.links.offsets
        )

    @property
    def halo(self) -> int:
        """How far a partner may be away."""
        return max(map(abs, self.strides))

    @property
    def front(self) -> int:
        """How many empty places come before the cells."""
        return self.halo + self.lag * (self.steps - 1)

    def of(self, values: Array) -> Array:
        """The values on the cells of the grid as a row, with the empty places at both of its ends."""
        values = jnp.pad(values, [(more, more) for more in self.continued], mode="wrap")
        empty = [(0, extent - n) for n, extent in zip(values.shape, self.extents, strict=True)]
        behind = self.blocks * self.block + self.halo - self.size
        return jnp.pad(jnp.pad(values, empty).reshape(-1), (self.front, behind))

    def cells(self, row: Array) -> Array:
        """The values on the cells of the grid."""
        return self.inside(row[self.front : self.front + self.size])

    def inside(self, values: Array) -> Array:
        """The cells of the grid among those with what continues them."""
        inside = tuple(slice(more, more + n) for n, more in zip(self.shape, self.continued, strict=True))
        return values.reshape(self.extents)[inside]

    def renewed(self, row: Array) -> Array:
        """The row with its periodic axes continued anew."""
        return self.of(self.cells(row)) if any(self.links.periodic) else row


class _Doubled(NamedTuple):
    """2X as rows: its diagonal, and its entries towards the partners."""

    diagonal: Array
    faces: tuple[Array, ...]
    row: _Row

    @classmethod
    def of(cls, generator: SymmetricGenerator, scale: Scalar, row: _Row) -> "_Doubled":
        """2X with X = I − scale · A."""
        faces = tuple(row.of(2 * scale * face) for face in generator.faces)
        return cls(row.of(2 - 2 * scale * generator.diagonal), faces, row)

    def times(self, row: Array, place: Any) -> Array:
        """2X times a row, in the block that begins at a place."""
        product = self.part(self.diagonal, place) * self.part(row, place)
        for stride, face in zip(self.row.strides, self.faces, strict=True):
            product = product + self.part(face, place) * self.part(row, place + stride)
            product = product + self.part(face, place - stride) * self.part(row, place - stride)
        return product

    def of_cells(self, values: Array) -> Array:
        """2X times the values on the cells, where the row is done as a whole."""
        return self.row.inside(self.times(self.row.of(values), self.row.front))

    def part(self, row: Array, place: Any) -> Array:
        """A block of a row."""
        return jax.lax.dynamic_slice(row, (place,), (self.row.block,))


def _clenshaw(
    generator: SymmetricGenerator, scale: Scalar, z: Scalar, values: Array, tolerance: float, row: _Row
) -> Array:
    """The polynomial of X = I − scale · A times the values."""
    twice, start = _Doubled.of(generator, scale, row), row.of(values)

    def down(carry: Any) -> Any:
        k, miller, total, rows = carry
        factors = []
        for j in range(row.steps):
            factors.append(2 * miller[0])
            miller, total = _next(miller, k - j, z), total + factors[-1]

        def over(block: Any, rows: tuple[Array, ...]) -> tuple[Array, ...]:
            b1, b2, free = rows
            for j, factor in enumerate(factors):
                place = row.front + block * row.block - j * row.lag
                part = factor * twice.part(start, place) + twice.times(b1, place) - twice.part(b2, place)
                # Not into b2: where a loop reads what it overwrites, the compiler does one cell at a time.
                b1, b2, free = jax.lax.dynamic_update_slice(free, part, (place,)), b1, b2
            return b1, b2, free

        rows = row.renewed(rows[0]), row.renewed(rows[1]), rows[2]
        rows = over(0, rows) if row.blocks == 1 else jax.lax.fori_loop(0, row.blocks, over, rows)
        return k - row.steps, miller, total, rows

    rest, zero = jnp.zeros_like(start), jnp.zeros((), values.dtype)
    begin = (num_terms(z, tolerance), _first(zero), zero, (rest,) * 3)
    _, miller, total, (b1, b2, _) = jax.lax.while_loop(lambda carry: carry[0] > 0, down, begin)
    b1, b2 = row.cells(b1), row.cells(b2)
    found = miller[0] * values + b1 - scale * generator.times(b1, row.links) - b2
    return found / (total + miller[0])


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
    twice = _Doubled.of(generator, scale, _Row.whole(values.shape, links, steps=1))
    # The vectors b₁, b₂ of the adjoint, and all coefficients, which are needed in the other order now.
    coefficients, total, b1, b2 = _recorded(twice, z, cotangent, tolerance)
    b1, b2 = b1 / total, b2 / total

    # d⟨λ, p(X)u⟩ = Σ_k (2 − δ_k0) ⟨b_{k+1}, dX T_k u⟩.
    def up(carry: Any) -> Any:
        k, t0, t1, b1, b2, gathered = carry
        weight = jnp.where(k == 0, 1, 2).astype(values.dtype)
        gathered = [sum_ + weight * part for sum_, part in zip(gathered, _products(links, b1, t0), strict=True)]
        following = jnp.where(k == 0, 0.5, 1) * twice.of_cells(t0) - jnp.where(k == 0, 0, 1) * t1
        # b_{k+3} from b_{k+1} and b_{k+2}: Clenshaw's rule the other way round.
        b3 = 2 * coefficients[k + 1] / total * cotangent + twice.of_cells(b2) - b1
        return k + 1, following, t0, b2, b3, gathered

    blank = [jnp.zeros_like(values)] * (1 + len(generator.faces))
    begin = (jnp.asarray(0, jnp.int32), values, jnp.zeros_like(values), b1, b2, blank)
    terms = jnp.minimum(num_terms(z, tolerance), coefficients.shape[0] - 1)
    *_, gathered = jax.lax.while_loop(lambda carry: carry[0] < terms, up, begin)
    # dX = −scale dA: its diagonal, and minus its entries across the faces.
    by_diagonal = -scale * gathered[0]
    by_faces = tuple(
        scale * part * _may_join(values.shape, offset, links.periodic)
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
        row = 2 * miller[0] * start + twice.of_cells(b1) - b2
        return k - 1, _next(miller, k, z), total + 2 * miller[0], row, b1, written

    rest, zero = jnp.zeros_like(start), jnp.zeros((), start.dtype)
    written = jnp.zeros((MAX_TERMS + 2,), start.dtype)
    terms = jnp.minimum(num_terms(z, tolerance), MAX_TERMS)
    begin = (terms, _first(zero), zero, rest, rest, written)
    _, miller, total, b1, b2, written = jax.lax.while_loop(lambda carry: carry[0] > 0, down, begin)
    return written.at[0].set(miller[0]), total + miller[0], b1, b2


def _products(links: Links, left: Array, right: Array) -> list[Array]:
    """The entries of a symmetric outer product on the diagonal and for each offset."""
    return [left * right, *(left * shifted(right, o) + right * shifted(left, o) for o in links.offsets)]


def _may_join(shape: tuple[int, ...], offset: tuple[int, ...], periodic: tuple[bool, ...]) -> np.ndarray:
    """One where a cell has a partner, which may lie across a periodic joint, zero where there is none."""
    joined = np.ones(shape)
    for axis, (n, k, wraps) in enumerate(zip(shape, offset, periodic, strict=True)):
        there = np.arange(n) + k
        inside = wraps | ((there >= 0) & (there < n))
        joined *= inside.reshape(tuple(n if i == axis else 1 for i in range(len(shape))))
    return joined


exponential.defvjp(_forward, _backward)
