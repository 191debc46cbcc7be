r"""A Fokker–Planck equation in a double well that no axis of the grid follows, and its solution.

$\partial_t q = \nabla\cdot(q\nabla V) + \Delta q$ on $[-2.5, 2.5]^2$ with $V = 2(u^2-1)^2 + 2v^2$, where $(u, v)$ are
the coordinates rotated by 30°, from $N((1, \tfrac12), 0.04\,I)$ in $(u, v)$ to $t = 1$.

The solution is the product of two in one dimension. In $v$ it is Gaussian. In $u$ it is $\pi\sum_k c_k
e^{-\lambda_k t}\varphi_k$ with the lowest eigenvectors of the fitted (Scharfetter–Gummel) matrix, symmetrised by
$\sqrt\pi$, on 8000 cells of $[-3.2, 3.2]$; the errors of two such sums are of second order, so they are extrapolated.
It is the solution in the whole plane: the walls of the box, where $V \ge 10$, change it by about 3e-6.
"""

import functools
from typing import NamedTuple

import numpy as np
import scipy.interpolate
import scipy.linalg

ANGLE, HALF_WIDTH, FINAL_TIME = np.deg2rad(30.0), 2.5, 1.0
START_U, START_V, START_VARIANCE = 1.0, 0.5, 0.04
# e^{-60} is far below rounding.
_LARGEST_RATE = 60.0


def rotated(x, y):
    """The coordinates (u, v) of a point."""
    c, s = np.cos(ANGLE), np.sin(ANGLE)
    return c * x + s * y, c * y - s * x


def potential(x, y):
    """V at a point, for arrays of NumPy, JAX and others."""
    u, v = rotated(x, y)
    return 2 * (u**2 - 1) ** 2 + 2 * v**2


def gradient(x, y):
    """The two components of ∇V in x and y."""
    u, v = rotated(x, y)
    by_u, by_v = 8 * u * (u**2 - 1), 4 * v
    c, s = np.cos(ANGLE), np.sin(ANGLE)
    return c * by_u - s * by_v, s * by_u + c * by_v


def laplacian(x, y):
    """ΔV."""
    u, _ = rotated(x, y)
    return 24 * u**2 - 8 + 4


def start(x, y):
    """The density at time zero, up to a factor."""
    u, v = rotated(x, y)
    return np.exp(-((u - START_U) ** 2 + (v - START_V) ** 2) / (2 * START_VARIANCE))


class Cells(NamedTuple):
    """The problem at the centres of n² cells: the start and the Gibbs state (both of mass one on the cells), and the
    solution at time one.
    """

    n: int
    x: np.ndarray
    y: np.ndarray
    start: np.ndarray
    gibbs: np.ndarray
    solution: np.ndarray

    @property
    def spacing(self) -> float:
        """The width of a cell."""
        return 2 * HALF_WIDTH / self.n

    def error(self, values) -> float:
        """The L¹ distance to the solution."""
        return float(np.sum(np.abs(np.asarray(values) - self.solution)) * self.spacing**2)

    def mass_error(self, values) -> float:
        """How much mass came or went, as a part of it."""
        return abs(float(np.sum(np.asarray(values))) / float(np.sum(self.start)) - 1)

    def drift(self, values) -> float:
        """The L¹ distance to the Gibbs state."""
        return float(np.sum(np.abs(np.asarray(values) - self.gibbs)) * self.spacing**2)


@functools.cache
def cells(n: int) -> Cells:
    """The problem on n² cells."""
    centres = -HALF_WIDTH + (np.arange(n) + 0.5) * 2 * HALF_WIDTH / n
    x, y = np.meshgrid(centres, centres, indexing="ij")
    u, v = rotated(x, y)
    variance = 0.25 + (START_VARIANCE - 0.25) * np.exp(-8 * FINAL_TIME)
    mean = START_V * np.exp(-4 * FINAL_TIME)
    gaussian = np.exp(-((v - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    def of_mass_one(values):
        return values / (np.sum(values) * (2 * HALF_WIDTH / n) ** 2)

    return Cells(n, x, y, of_mass_one(start(x, y)), of_mass_one(np.exp(-potential(x, y))), along_u()(u) * gaussian)


@functools.cache
def along_u():
    """The density of u at time one, as a function."""
    places, coarse = _one_dimensional(4000)
    fine_places, fine = _one_dimensional(8000)
    # Relative to e^{-V} it is smooth; a cell of the coarse grid is two of the fine one, so both are interpolated.
    fine = scipy.interpolate.CubicSpline(fine_places, fine)(places)
    relative = scipy.interpolate.CubicSpline(places, fine + (fine - coarse) / 3)
    return lambda u: np.exp(-_well(u)) * relative(np.clip(u, -3.2, 3.2))


def accuracy() -> float:
    """The L¹ distance of the one-dimensional solutions with 4000 and with 8000 cells, before extrapolation."""
    places, coarse = _one_dimensional(4000)
    fine_places, fine = _one_dimensional(8000)
    fine = scipy.interpolate.CubicSpline(fine_places, fine)(places)
    return float(np.sum(np.exp(-_well(places)) * np.abs(fine - coarse)) * (places[1] - places[0]))


def _well(u):
    return 2 * (u**2 - 1) ** 2


@functools.cache
def _one_dimensional(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The centres of n cells, and the density of u at time one over e^{-V} there."""
    h = 6.4 / n
    u = -3.2 + (np.arange(n) + 0.5) * h
    # The rates across a face are B(ΔV)/h² and B(−ΔV)/h², B(z) = z/(e^z − 1); their geometric mean is symmetric.
    drop = np.diff(_well(u))
    right, left = bernoulli(drop) / h**2, bernoulli(-drop) / h**2
    diagonal = np.concatenate([right, [0.0]]) + np.concatenate([[0.0], left])
    rates, modes = scipy.linalg.eigh_tridiagonal(
        diagonal, -np.sqrt(right * left), select="v", select_range=(-1.0, _LARGEST_RATE)
    )
    root = np.exp(-0.5 * _well(u))
    density = np.exp(-((u - START_U) ** 2) / (2 * START_VARIANCE))
    density = density / (np.sum(density) * h)
    # Far outside both are zero, and their quotient is nothing.
    relative = np.where(density > 1e-100, density / np.maximum(root, 1e-200), 0)
    parts = modes.T @ relative
    moved = modes @ (np.exp(-rates * FINAL_TIME) * parts)
    # Where e^{-V} is below rounding nothing is known of the quotient, nor needed.
    known = root > 1e-4
    quotient = np.where(known, moved / np.maximum(root, 1e-4), 0)
    first, last = np.flatnonzero(known)[[0, -1]]
    quotient[:first], quotient[last + 1 :] = quotient[first], quotient[last]
    return u, quotient


def bernoulli(z):
    small = np.abs(z) < 1e-8
    safe = np.where(small, 1.0, z)
    return np.where(small, 1 - z / 2, safe / np.expm1(safe))
