r"""Three ways to solve $(G + \lambda\operatorname{diag}G)\,v = g$ with a Fisher matrix, and which is the cheapest.

With $m$ rows in the factor $S$ ($G = S^\top S$) and $d$ parameters, all in coordinates scaled by
$\sqrt{\operatorname{diag}G}$ so that no answer depends on the units of a parameter:

- dense: $G$ and its Cholesky factor, $m d^2 + d^3/3$ operations;
- kernel: the $m \times m$ matrix $K = SS^\top$, $m^2 d$ operations, and Woodbury's identity $(S^\top S + \lambda)^{-1}
g =
  (g - S^\top (K + \lambda)^{-1} S g)/\lambda$, or without damping $S^\top K^{+2} S g$;
- matrix-free: conjugate gradients, one forward and one backward pass of the model for each product.

Where $G$ is singular and there is no damping, each gives the solution of least norm (in scaled coordinates): directions
that do not change the distribution stay at rest.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve

from thalweg import _tree
from thalweg._types import Array, Count, Flag, PyTree, Scalar
from thalweg.geometries._base import Accuracy
from thalweg.likelihoods import AbstractFamily, FactorRows, factor_rows, fisher_square_root

# What the exact forms may take before conjugate gradients are chosen: about a minute of two CPU cores.
_MOST_OPERATIONS = 1e12
# The factor is kept whole up to this size, and else made again block by block.
_WHOLE_BYTES = 2**29
_BLOCK_BYTES = 2**28
# A matrix d × d beyond this does not fit beside its copies.
_LARGEST_DENSE = 10_000


class DenseFisher(eqx.Module):
    """The Fisher matrix itself and its Cholesky factor: exact, for up to a few thousand parameters."""


class KernelFisher(eqx.Module):
    """The matrix of the observations, $SS^\\top$, instead of that of the parameters: exact, for fewer observed numbers
    than parameters. Needs a likelihood with a factor (all of `tw.likelihoods` have one).
    """


class MatrixFreeFisher(eqx.Module):
    r"""Conjugate gradients on products with the Fisher matrix, which is never formed.

    Stopped early, at `max_steps`, the direction is still the steepest one in the Krylov space, so that its dissipation
    identity holds; it is then not the whole natural gradient. Without damping the gradient must lie in the range of the
    matrix, as that of a likelihood does. The residual that is left is `path.measurements["descent_residual"]`.

    **Arguments:** `tolerance`: the residual left, relative to the gradient; `max_steps`: stop after so many products,
    wherever that is. `None` allows as many as there are parameters, at most 1000; a run that would need more ends as
    `RESULTS.unsolved_metric`.
    """

    tolerance: float = eqx.field(static=True, default=1e-8)
    max_steps: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"`tolerance` of `MatrixFreeFisher` must lie between 0 and 1; got {self.tolerance}.")
        if self.max_steps is not None and (not isinstance(self.max_steps, int) or self.max_steps < 1):
            raise ValueError(
                f"`max_steps` of `MatrixFreeFisher` must be a positive integer or `None`; got {self.max_steps!r}."
            )


def choose_solver(family: AbstractFamily, params: PyTree) -> tuple[Any, str]:
    """The cheapest form for these shapes, and why, in words. Nothing is computed."""
    flat, _ = jax.eval_shape(lambda p: (ravel_pytree(p)[0], 0), params)
    d = flat.size
    if family.whiten is None:
        if d <= 2000:
            return DenseFisher(), f"dense: {d} parameters, and a family without a factor"
        return MatrixFreeFisher(), f"matrix-free: {d} parameters, and a family without a factor"
    rows = factor_rows(family, params)
    m = rows.count * rows.each
    passes = rows.each if rows.own else min(m, d)
    jacobian = 4.0 * passes * m * d
    if d <= m:
        operations, form, word = jacobian + m * d**2 + d**3 / 3, DenseFisher(), "dense"
    else:
        operations, form, word = jacobian + float(m) ** 2 * d + 9.0 * m**3, KernelFisher(), "kernel"
    sizes = f"{m} observed numbers, {d} parameters"
    if operations > _MOST_OPERATIONS or min(m, d) > _LARGEST_DENSE:
        return MatrixFreeFisher(), f"matrix-free: {sizes}; the {word} form would take {operations:.1g} operations"
    return form, f"{word}: {sizes}, about {operations:.1g} operations"


def solve(
    solver: Any, family: AbstractFamily, params: PyTree, gradient: Array, damping: Any, undamped: bool
) -> tuple[Array, Accuracy]:
    """The solution and how well it solves; differentiable by the implicit function theorem, whatever found it.

    The residual is that of the equations in scaled coordinates, so it does not depend on units either; a compiler
    leaves its product out where nobody asks for it.
    """
    by = _solve_dense if isinstance(solver, DenseFisher) else _solve_by_products
    solution, residual, right = by(solver, family, params, gradient, damping, undamped)
    # What remains of a gradient in the range of the matrix, as that of a likelihood, is rounding.
    tolerance = float(jnp.finfo(right.dtype).eps) ** 0.5
    if isinstance(solver, MatrixFreeFisher):
        # The true residual stays above the one that the iteration carries along, by rounding times the condition.
        tolerance = max(100 * solver.tolerance, tolerance) if solver.max_steps is None else float("inf")
    return solution, Accuracy(jnp.linalg.norm(residual), jnp.linalg.norm(right), tolerance)


def _solve_by_products(
    solver: Any, family: AbstractFamily, params: PyTree, gradient: Array, damping: Any, undamped: bool
) -> tuple[Array, Array, Array]:
    flat, unravel = ravel_pytree(params)
    scale, moves = _scale(fisher_diagonal(family, params, needed=not undamped))
    lam = jnp.asarray(damping, flat.dtype)

    def operator(scaled: Array) -> Array:
        image = ravel_pytree(family.fisher_product(params, unravel(scaled / scale)))[0]
        return image / scale + lam * scaled

    here, width, shift = _tree.stop_gradient((params, scale, lam))
    find = _kernel_solver if isinstance(solver, KernelFisher) else _free_solver
    inner = find(solver, family, here, width, shift, undamped)
    right = gradient / scale
    reached = jnp.where(moves, right, 0)
    solution = jax.lax.custom_linear_solve(operator, reached, inner, symmetric=True)
    return solution / scale, operator(solution) - right, right


def _scale(diagonal: Array) -> tuple[Array, Array]:
    """The root of the diagonal, and where it is not zero: a parameter that changes nothing has no scale."""
    moves = diagonal > 0
    return jnp.where(moves, jnp.sqrt(jnp.where(moves, diagonal, 1)), 1), moves


def fisher_diagonal(family: AbstractFamily, params: PyTree, needed: bool = True) -> Array:
    """The diagonal of the Fisher matrix, or ones where it is not `needed` and would be dear."""
    flat, _ = ravel_pytree(params)
    if family.whiten is None:
        return jnp.diagonal(family.fisher(params)) if needed or flat.size <= 2000 else jnp.ones_like(flat)
    rows = factor_rows(family, params)
    if not (needed or rows.own):
        return jnp.ones_like(flat)
    return _over_blocks(rows, flat, lambda total, block: total + jnp.sum(block**2, 0), jnp.zeros_like(flat))


def _solve_dense(
    solver: Any, family: AbstractFamily, params: PyTree, gradient: Array, damping: Any, undamped: bool
) -> tuple[Array, Array, Array]:
    del solver, undamped
    matrix = dense_matrix(family, params)
    diagonal = jnp.diagonal(matrix)
    matrix = matrix + jnp.asarray(damping, matrix.dtype) * jnp.diag(diagonal)
    # Scaled to a unit diagonal first: parameters of sizes 1e-4 and 1e4 are common, and Cholesky's error is that of
    # the scaled matrix.
    scale, _ = _scale(diagonal)
    scaled, right = matrix / scale[:, None] / scale[None], gradient / scale
    # Factors are not differentiated (equal eigenvalues would make NaN): the solution is, as that of a linear system.
    inverse = _pseudo_inverse(jax.lax.stop_gradient(scaled))
    solution = jax.lax.custom_linear_solve(lambda v: scaled @ v, right, lambda _, b: inverse(b), symmetric=True)
    return solution / scale, scaled @ solution - right, right


def dense_matrix(family: AbstractFamily, params: PyTree) -> Array:
    """The Fisher matrix, shape `(d, d)`, block of rows by block of rows where its factor is large."""
    flat, _ = ravel_pytree(params)
    if family.whiten is None or jax.eval_shape(family.fisher_factor, params).size * flat.dtype.itemsize <= _WHOLE_BYTES:
        return family.fisher(params)
    rows = factor_rows(family, params)
    start = jnp.zeros((flat.size, flat.size), flat.dtype)
    return _over_blocks(rows, flat, lambda total, block: total + block.T @ block, start)


def _pseudo_inverse(matrix: Array) -> Callable[[Array], Array]:
    """Solve with a positive semidefinite matrix: Cholesky where it is safely definite, else by eigenvalues, without
    those that rounding alone made. A NaN in the matrix comes out as NaN.
    """
    size, eps = matrix.shape[0], jnp.finfo(matrix.dtype).eps
    factor = jnp.linalg.cholesky(matrix)
    pivots = jnp.diagonal(factor) ** 2
    definite = jnp.min(jnp.where(jnp.isfinite(pivots), pivots, 0)) > 100 * size * eps * jnp.max(jnp.diagonal(matrix))

    def by_eigenvalues(matrix: Array) -> tuple[Array, Array]:
        values, vectors = jnp.linalg.eigh(matrix)
        kept = values > size * eps * values[-1]
        return jnp.where(kept, 1 / jnp.where(kept, values, 1), 0) + 0 * values[-1], vectors

    skip = lambda matrix: (jnp.zeros(size, matrix.dtype), matrix)  # noqa: E731
    weights, vectors = jax.lax.cond(definite, skip, by_eigenvalues, matrix)

    def solve(right: Array) -> Array:
        return jax.lax.cond(
            definite, lambda b: cho_solve((factor, True), b), lambda b: vectors @ (weights * (vectors.T @ b)), right
        )

    return solve


def _kernel_solver(
    solver: Any, family: AbstractFamily, params: PyTree, scale: Array, lam: Array, undamped: bool
) -> Any:
    del solver
    flat, unravel = ravel_pytree(params)
    forward, backward = fisher_square_root(family, params)
    apply = lambda v: forward(unravel(v / scale))  # noqa: E731
    transpose = lambda u: ravel_pytree(backward(u))[0] / scale  # noqa: E731
    kernel = _kernel_matrix(family, params, scale)
    if undamped:
        inverse = _pseudo_inverse(kernel)
        first = lambda r: transpose(inverse(inverse(apply(r))))  # noqa: E731
        residual = lambda g, v: g - transpose(apply(v))  # noqa: E731
    else:
        inverse = _pseudo_inverse(kernel + lam * jnp.eye(kernel.shape[0], dtype=kernel.dtype))
        first = lambda r: (r - transpose(inverse(apply(r)))) / lam  # noqa: E731
        residual = lambda g, v: g - transpose(apply(v)) - lam * v  # noqa: E731

    def solve(_: Any, right: Array) -> Array:
        # Squaring the kernel, and the difference in Woodbury's identity, cost digits; refinement brings them back.
        return jax.lax.fori_loop(0, 2, lambda _, v: v + first(residual(right, v)), first(right))

    return solve


def _free_solver(solver: Any, family: AbstractFamily, params: PyTree, scale: Array, lam: Array, undamped: bool) -> Any:
    del undamped
    flat, unravel = ravel_pytree(params)
    steps = min(flat.size, 1000) if solver.max_steps is None else solver.max_steps

    def product(v: Array) -> Array:
        return ravel_pytree(family.fisher_product(params, unravel(v / scale)))[0] / scale + lam * v

    return lambda _, right: _conjugate_gradients(product, right, solver.tolerance, steps)


class _Iterate(NamedTuple):
    solution: Array
    residual: Array
    direction: Array
    squared: Scalar
    best: Array
    least: Scalar
    largest: Scalar
    count: Count
    ended: Flag


def _conjugate_gradients(product: Callable[[Array], Array], right: Array, tolerance: float, num_steps: int) -> Array:
    """The iterate of least residual. It ends, too, where a direction has no curvature to rounding: there the matrix is
    singular, and the usual division by that curvature would throw the solution away.
    """
    first, floor = jnp.sum(right**2), right.size * jnp.finfo(right.dtype).eps

    def unfinished(here: _Iterate) -> Flag:
        return (here.squared > tolerance**2 * first) & (here.count < num_steps) & ~here.ended

    def improve(here: _Iterate) -> _Iterate:
        image = product(here.direction)
        curvature = here.direction @ image
        rayleigh = curvature / jnp.sum(here.direction**2)
        largest = jnp.maximum(here.largest, rayleigh)
        # Not "≤": a NaN ends it too.
        ended = ~(rayleigh > floor * largest)
        length = jnp.where(ended, 0, here.squared / jnp.where(ended, 1, curvature))
        solution = here.solution + length * here.direction
        residual = jnp.where(ended, here.residual, here.residual - length * image)
        squared = jnp.sum(residual**2)
        direction = residual + (squared / here.squared) * here.direction
        better = squared < here.least
        best, least = jnp.where(better, solution, here.best), jnp.where(better, squared, here.least)
        return _Iterate(solution, residual, direction, squared, best, least, largest, here.count + 1, ended)

    zero, none = jnp.zeros_like(right), jnp.zeros((), right.dtype)
    count, going = jnp.asarray(0, jnp.int32), jnp.asarray(False)
    start = _Iterate(zero, right, right, first, zero, first, none, count, going)
    return jax.lax.while_loop(unfinished, improve, start).best


def _kernel_matrix(family: AbstractFamily, params: PyTree, scale: Array) -> Array:
    """$K = \\tilde S \\tilde S^\\top$ with $\\tilde S = S/$`scale`, never holding more than two blocks of a large
    factor.
    """
    flat, rows = ravel_pytree(params)[0], factor_rows(family, params)
    total = rows.count * rows.each
    if total * flat.size * flat.dtype.itemsize <= _WHOLE_BYTES:
        factor = jax.vmap(rows.block)(jnp.arange(rows.count)).reshape(total, flat.size) / scale[None]
        return factor @ factor.T
    per_block, blocks = _blocks(rows, flat)
    size = per_block * rows.each
    pairs = jnp.asarray([(i, j) for i in range(blocks) for j in range(i, blocks)])

    def fill(carry: Any, pair: Array) -> tuple[Any, None]:
        kernel, left, left_index = carry
        # The left block serves a whole row of pairs; it is made again only when its index changes.
        left = jax.lax.cond(pair[0] == left_index, lambda: left, lambda: _block(rows, per_block, pair[0]) / scale[None])
        right = jax.lax.cond(pair[0] == pair[1], lambda: left, lambda: _block(rows, per_block, pair[1]) / scale[None])
        part = left @ right.T
        kernel = jax.lax.dynamic_update_slice(kernel, part, (pair[0] * size, pair[1] * size))
        kernel = jax.lax.dynamic_update_slice(kernel, part.T, (pair[1] * size, pair[0] * size))
        return (kernel, left, pair[0]), None

    whole = jnp.zeros((blocks * size, blocks * size), flat.dtype)
    start = (whole, jnp.zeros((size, flat.size), flat.dtype), jnp.asarray(-1, pairs.dtype))
    (kernel, _, _), _ = jax.lax.scan(fill, start, pairs)
    return kernel[:total, :total]


def _blocks(rows: FactorRows, flat: Array) -> tuple[int, int]:
    """How many observations make a block, and how many blocks there are."""
    per_block = max(1, min(rows.count, _BLOCK_BYTES // (rows.each * flat.size * flat.dtype.itemsize)))
    blocks = -(-rows.count // per_block)
    return -(-rows.count // blocks), blocks


def _block(rows: FactorRows, per_block: int, index: Array) -> Array:
    """The rows of a block; those past the end are zero."""
    which = index * per_block + jnp.arange(per_block)
    made = jax.vmap(rows.block)(jnp.minimum(which, rows.count - 1))
    return jnp.where((which < rows.count)[:, None, None], made, 0).reshape(-1, made.shape[-1])


def _over_blocks(rows: FactorRows, flat: Array, add: Callable[..., Any], start: Array) -> Array:
    per_block, blocks = _blocks(rows, flat)
    return jax.lax.fori_loop(0, blocks, lambda i, total: add(total, _block(rows, per_block, i)), start)
