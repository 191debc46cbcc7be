r"""Interaction kernels $W$ of [`thalweg.InteractionEnergy`][] and [`thalweg.MaximumMeanDiscrepancy`][], functions of
one displacement.

Any even function may stand in for a member of this module. What these add: a kernel that is infinite or has a corner at
zero knows its mean over a cell around zero (`cell_average`), which a density on a grid takes in place of the value
there; so the potential of a cell at its own centre is exact. Between points a displacement of exactly zero counts as
zero energy where the kernel is infinite: a particle does not act on itself.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from thalweg._types import Array, ScalarLike


class Newtonian(eqx.Module):
    r"""The Newtonian kernel, $-\Delta W = \delta$; see [`thalweg.kernels.newtonian`][]."""

    dim: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.dim not in (1, 2, 3):
            raise ValueError(f"`newtonian(dim)` is there in 1, 2 and 3 dimensions; got {self.dim}.")

    def __call__(self, displacement: Array) -> Array:
        _check_point(displacement, self.dim, "newtonian")
        if self.dim == 1:
            return -0.5 * jnp.abs(displacement[0])
        square = jnp.sum(displacement**2)
        apart = square > 0
        safe = jnp.where(apart, square, 1)
        value = -jnp.log(safe) / (4 * math.pi) if self.dim == 2 else 1 / (4 * math.pi * jnp.sqrt(safe))
        return jnp.where(apart, value, 0)

    def cell_average(self, spacing: tuple[float, ...]) -> float:
        """The mean over the cell around zero, in closed form."""
        half = [0.5 * h for h in spacing]
        if self.dim == 1:
            return -0.25 * half[0]
        if self.dim == 2:
            a, b = half
            logs = 0.5 * (math.log(a**2 + b**2) - 3 + a / b * math.atan(b / a) + b / a * math.atan(a / b))
            return -logs / (2 * math.pi)
        # The potential of a box at its centre is that of eight boxes at their corners (Kellogg 1929).
        diagonal = math.sqrt(sum(a**2 for a in half))
        total = 0.0
        for i in range(3):
            a, b, c = half[i], half[i - 1], half[i - 2]
            total += b * c * math.asinh(a / math.hypot(b, c)) - 0.5 * a**2 * math.atan(b * c / (a * diagonal))
        return total / math.prod(half) / (4 * math.pi)

    def fourier_symbol(self, frequencies: Array) -> Array:
        r"""$1/|\omega|^2$, and zero for the mean."""
        square = jnp.sum(frequencies**2, axis=-1)
        return jnp.where(square > 0, 1 / jnp.where(square > 0, square, 1), 0)


def newtonian(dim: int) -> Newtonian:
    r"""The Newtonian (Coulomb) kernel, $-\Delta W = \delta$: $-|x|/2$ in one dimension, $-\log|x|/2\pi$ in two,
    $1/(4\pi|x|)$ in three; repulsive with a positive factor, attractive (Keller–Segel) with a negative one.

    On a grid that is periodic along all axes it is the kernel of the torus, $-\Delta W = \delta - 1/|\Omega|$, by its
    Fourier symbol $1/|\omega|^2$: the mean of the density is removed.

    **Arguments:** `dim`: 1, 2 or 3, the dimension of the state.

    **Source:** Evans, *Partial Differential Equations* (2010), section 2.2.1; Kellogg, *Foundations of Potential
    Theory* (1929), for the potential of a box.
    """
    return Newtonian(dim)


class Gaussian(eqx.Module):
    r"""The Gaussian kernel; see [`thalweg.kernels.gaussian`][]."""

    bandwidth: ScalarLike

    def __check_init__(self) -> None:
        if isinstance(self.bandwidth, int | float) and not 0 < self.bandwidth < math.inf:
            raise ValueError(f"`bandwidth` of `gaussian` must be positive and finite; got {self.bandwidth}.")

    def __call__(self, displacement: Array) -> Array:
        scale = jnp.asarray(self.bandwidth, displacement.dtype)
        return jnp.exp(-0.5 * jnp.sum(displacement**2) / scale**2)


def gaussian(bandwidth: ScalarLike) -> Gaussian:
    r"""The Gaussian kernel $e^{-|x|^2/2\sigma^2}$, positive definite in every dimension.

    **Arguments:** `bandwidth`: $\sigma > 0$, in units of length.
    """
    return Gaussian(bandwidth)


class AttractiveRepulsive(eqx.Module):
    r"""A difference of powers; see [`thalweg.kernels.attractive_repulsive`][]."""

    attraction: float = eqx.field(static=True)
    repulsion: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not self.repulsion < self.attraction:
            raise ValueError(
                "`attractive_repulsive(a, b)` attracts at large and repels at small distances for a > b only; "
                f"got a = {self.attraction}, b = {self.repulsion}."
            )

    def __call__(self, displacement: Array) -> Array:
        square = jnp.sum(displacement**2)
        apart = square > 0
        safe = jnp.where(apart, square, 1)
        value = _power(safe, self.attraction) - _power(safe, self.repulsion)
        return jnp.where(apart, value, 0)

    def cell_average(self, spacing: tuple[float, ...]) -> float:
        """The mean over the cell around zero, by Gauss quadrature along rays."""
        dim = len(spacing)
        if self.repulsion <= -dim:
            raise ValueError(
                f"The repulsion |x|^{self.repulsion} is not integrable in {dim} dimension(s), so a density has "
                f"infinite energy; the exponent must be above {-dim}."
            )
        return mean_of_power(self.attraction, spacing) - mean_of_power(self.repulsion, spacing)


def attractive_repulsive(a: float | int, b: float | int) -> AttractiveRepulsive:
    r"""The power-law kernel $W(x) = |x|^a/a - |x|^b/b$, $a > b$, with $\log|x|$ in place of $|x|^0/0$: attraction at
    large, repulsion at small distances, balanced between two points at distance one.

    **Arguments:** `a`, `b`: the exponents of the attraction and of the repulsion, $a > b$; on a grid $b > -d$.

    **Source:** Balagué, Carrillo, Laurent, Raoul, *Dimensionality of local minimizers of the interaction energy*, Arch.
    Ration. Mech. Anal. 209 (2013).
    """
    return AttractiveRepulsive(float(a), float(b))


def _power(square: Array, exponent: float) -> Array:
    if exponent == 0:
        return 0.5 * jnp.log(square)
    return square ** (0.5 * exponent) / exponent


def mean_of_power(exponent: float, spacing: tuple[float, ...]) -> float:
    r"""The mean of $|x|^s/s$ ($\log|x|$ for $s = 0$) over a box around zero, $s > -d$.

    The box is made of pyramids with their tops at zero. Along a ray the power integrates exactly,
    $\int_0^1 t^{d-1+s}\,\mathrm dt = 1/(d+s)$, and over the base it is smooth.
    """
    dim = len(spacing)
    half = [0.5 * h for h in spacing]
    total = 0.0
    for i, height in enumerate(half):
        sides = [_graded_rule(height, half[j]) for j in range(dim) if j != i]
        square, weight = np.array([height**2]), np.ones(1)
        for nodes, weights in sides:
            square = (square[:, None] + nodes[None] ** 2).reshape(-1)
            weight = (weight[:, None] * weights[None]).reshape(-1)
        if exponent == 0:
            along = 0.5 * np.log(square) / dim - 1 / dim**2
        else:
            along = square ** (0.5 * exponent) / exponent / (dim + exponent)
        # One octant of one of the two pyramids; by symmetry the mean over the octant is that over the box.
        total += height * float(np.sum(weight * along))
    return total / math.prod(half)


def _graded_rule(height: float, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss nodes on (0, side) that resolve functions which vary on the scale of their distance to -height."""
    ends = [0.0, *itertools.takewhile(lambda end: end < side, (height * 2.0**k for k in itertools.count())), side]
    nodes, weights = np.polynomial.legendre.leggauss(20)
    pieces = [
        (low + 0.5 * (high - low) * (nodes + 1), 0.5 * (high - low) * weights) for low, high in itertools.pairwise(ends)
    ]
    return np.concatenate([x for x, _ in pieces]), np.concatenate([w for _, w in pieces])


def even_part(kernel: Any) -> Any:
    r"""$\tfrac12(W(x) + W(-x))$, the part of a kernel that an energy of pairs sees; with what the kernel knows of its
    cell around zero.
    """
    if isinstance(kernel, Newtonian | Gaussian | AttractiveRepulsive | EvenPart):
        return kernel
    if not callable(kernel):
        return 0.5 * (kernel + jnp.flip(kernel)) if getattr(kernel, "ndim", 0) else kernel
    if hasattr(kernel, "cell_average") or hasattr(kernel, "fourier_symbol"):
        # A kernel with a singularity of one's own; it is meant to be even.
        return kernel
    return EvenPart(kernel)


class EvenPart(eqx.Module):
    """The even part of a function of one displacement."""

    kernel: Callable[..., Any]

    def __call__(self, displacement: Array) -> Array:
        return 0.5 * (self.kernel(displacement) + self.kernel(-displacement))


def _check_point(displacement: Array, dim: int, name: str) -> None:
    if displacement.shape != (dim,):
        raise ValueError(
            f"`{name}({dim})` is a kernel in {dim} dimension(s) and was given displacements of shape "
            f"{displacement.shape}.\nUse `tw.kernels.{name}({displacement.shape[-1]})`."
        )
