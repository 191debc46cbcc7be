r"""Convolution of cell values with an interaction kernel, by a fast Fourier transform.

A doubled axis holds the displacements $-(n-1)h, \dots, (n-1)h$ without wrapping onto each other; on a periodic axis the
nearest image is meant, and where two images are equally near (half of an even number of cells) their mean, so that an
even kernel stays even in every direction.

A kernel may say more than its values at points. `cell_average(spacing)` gives its mean over the cell around zero, where
a point value may be infinite. `fourier_symbol(frequencies)` gives its transform on a torus; then all axes must be
periodic, or none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array
from thalweg.states._grid import Grid


def convolve(kernel: Any, values: Array, grid: Grid) -> Array:
    r"""$\sum_j W(x_i - x_j)\,q_j\,h^d$, of the grid's shape; zero outside of the domain."""
    axes = tuple(range(grid.dim))
    if grid.mask is not None:
        values = jnp.where(grid.mask, values, 0)
    if _has_symbol(kernel, grid):
        frequencies = _frequencies(grid, values.dtype)
        transform = jnp.fft.rfftn(values, axes=axes)
        spectrum = kernel.fourier_symbol(frequencies).astype(transform.dtype) * transform
        found = jnp.fft.irfftn(spectrum, s=grid.shape, axes=axes)
    else:
        sizes = tuple(n if grid.is_periodic(i) else 2 * n for i, n in enumerate(grid.shape))
        weights = kernel_values(kernel, grid, values.dtype)
        spectrum = jnp.fft.rfftn(weights, axes=axes) * jnp.fft.rfftn(values, s=sizes, axes=axes)
        full = jnp.fft.irfftn(spectrum, s=sizes, axes=axes)
        found = full[tuple(slice(n) for n in grid.shape)] * grid.cell_volume
    return found if grid.mask is None else jnp.where(grid.mask, found, 0)


def kernel_values(kernel: Any, grid: Grid, dtype: Any) -> Array:
    """The kernel at the displacements of the (doubled) grid, in the order of a fast Fourier transform."""
    if not callable(kernel):
        return _array_values(kernel, grid, dtype)
    found = _at_displacements(kernel, grid, dtype, ())
    for axis, n in enumerate(grid.shape):
        if not grid.is_periodic(axis):
            # No two cells are n cells apart; a kernel that is not finite there must not spoil the transform.
            apart = np.arange(2 * n) == n
            found = jnp.where(apart.reshape(tuple(-1 if i == axis else 1 for i in range(grid.dim))), 0, found)
    if hasattr(kernel, "cell_average"):
        found = found.at[(0,) * grid.dim].set(jnp.asarray(kernel.cell_average(grid.spacing), dtype))
    return found


def displacement(grid: Grid, index: tuple[int, ...]) -> list[float]:
    """The displacement that an index of `kernel_values` stands for."""
    found = []
    for axis, (i, n, h) in enumerate(zip(index, grid.shape, grid.spacing, strict=True)):
        size = n if grid.is_periodic(axis) else 2 * n
        found.append(round(float((i if i < (size + 1) // 2 else i - size) * h), 6))
    return found


def _at_displacements(kernel: Callable[..., Any], grid: Grid, dtype: Any, chosen: tuple[Array, ...]) -> Array:
    """The kernel on the product of the displacements along each axis; `chosen` are those of the first axes."""
    axis = len(chosen)
    if axis == grid.dim:
        on_points = kernel
        for _ in range(grid.dim):
            on_points = jax.vmap(on_points)
        return jnp.asarray(on_points(jnp.stack(jnp.meshgrid(*chosen, indexing="ij"), axis=-1))).astype(dtype)
    n, h = grid.shape[axis], grid.spacing[axis]
    size = n if grid.is_periodic(axis) else 2 * n
    along = jnp.asarray(np.fft.fftfreq(size, d=1.0 / size) * h, dtype)
    found = _at_displacements(kernel, grid, dtype, (*chosen, along))
    if grid.is_periodic(axis) and n % 2 == 0:
        place = tuple(slice(n // 2, n // 2 + 1) if i == axis else slice(None) for i in range(grid.dim))
        other = _at_displacements(kernel, grid, dtype, (*chosen, jnp.full((1,), 0.5 * n * h, dtype)))
        found = found.at[place].set(0.5 * (found[place] + other))
    return found


def _array_values(kernel: Any, grid: Grid, dtype: Any) -> Array:
    """Kernel values given around zero, padded to the displacements of the grid."""
    check_kernel_array(kernel, grid)
    sizes = tuple(n if grid.is_periodic(i) else 2 * n for i, n in enumerate(grid.shape))
    padding = [(0, size - m) for size, m in zip(sizes, kernel.shape, strict=True)]
    shifts = tuple(-(m // 2) for m in kernel.shape)
    return jnp.roll(jnp.pad(jnp.asarray(kernel, dtype), padding), shifts, tuple(range(grid.dim)))


def check_kernel_array(kernel: Any, grid: Grid) -> None:
    """Raise `ValueError` unless an array of kernel values fits the displacements of a grid."""
    shape = getattr(kernel, "shape", None)
    most = tuple(n - (n + 1) % 2 if grid.is_periodic(i) else 2 * n - 1 for i, n in enumerate(grid.shape))
    if shape is None or len(shape) != grid.dim:
        raise ValueError(
            "An interaction kernel is a function of one displacement, or an array of its values around zero with "
            f"{grid.dim} axes; got {type(kernel).__name__ if shape is None else f'an array of shape {shape}'}."
        )
    if any(m % 2 == 0 for m in shape):
        raise ValueError(
            f"An array of kernel values must have an odd number of entries along each axis, with zero displacement in "
            f"the middle; got shape {shape}."
        )
    if any(m > n for m, n in zip(shape, most, strict=True)):
        raise ValueError(
            f"The kernel is larger than the grid: its array has shape {shape}, and a grid of shape {grid.shape} has "
            f"displacements for at most {most}.\nCut the array, or use a larger grid."
        )


def _has_symbol(kernel: Any, grid: Grid) -> bool:
    if not hasattr(kernel, "fourier_symbol"):
        return False
    periodic = [grid.is_periodic(axis) for axis in range(grid.dim)]
    if any(periodic) and not all(periodic):
        raise ValueError(
            f"`{type(kernel).__name__}` is known in free space and on a torus; this grid is periodic along some axes "
            f"only: {grid.boundary}.\nMake all axes periodic, or none."
        )
    return all(periodic)


def _frequencies(grid: Grid, dtype: Any) -> Array:
    """Angular frequencies of the half spectrum, shape `(..., dim)`."""
    along = [2 * np.pi * np.fft.fftfreq(n, d=h) for n, h in zip(grid.shape, grid.spacing, strict=True)]
    last, h = grid.shape[-1], grid.spacing[-1]
    along[-1] = 2 * np.pi * np.fft.rfftfreq(last, d=h)
    return jnp.asarray(np.stack(np.meshgrid(*along, indexing="ij"), axis=-1), dtype)
