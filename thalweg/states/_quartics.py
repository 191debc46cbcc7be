r"""From values at equally spaced nodes to a smooth function: a quartic on each cell, once continuously differentiable.

On the cell between nodes $m$ and $m + 1$ (coordinate $t$ from 0 to 1) the function is the cubic with the values and
slopes at both nodes, plus a bubble $c_m\,t^2(1-t)^2$. Slopes $s_j$ and bubbles $c_m$ are linear in the values: centred
differences in the interior (exact up to sixth and fifth powers), and near an end one-sided ones, the *closure*.

With $\varphi_j$ the function whose value is 1 at node $j$ and 0 at the others, the variation of an integral functional
is $\partial F/\partial y_j = \int \mathrm{EL}\,\varphi_j$ + (terms at the ends), where EL is the left side of the
Euler–Lagrange equation. So $\partial F/\partial y_j$ divided by the weight $w_j = \int\varphi_j$ is EL at the node, to
second order, if the centre of mass of each $\varphi_j$ is its node: $\int (x - x_j)\,\varphi_j = 0$. In the interior
that is symmetry. Near an end it is a condition on the closure, which this module solves for. Hat functions do not meet
it (the half hat at an end has its mass a third of a cell inside), so with them the natural end would be of first order.
"""

import functools

import numpy as np

from thalweg._types import Array

# Nodes that a cell looks at: slopes at both of its ends, three to each side.
WINDOW = 8
# The closures of two ends must not meet.
FEWEST_CELLS = 8
_NUM_SLOPES, _NUM_BUBBLES, _DEGREE = 3, 2, 4
_SLOPE = np.array([-1, 9, -45, 0, 45, -9, 1]) / 60
_BUBBLE = np.array([1, -3, 2, 2, -3, 1]) / 48

# Exact for the products with second-degree coefficients that the order of the variation needs.
_NUM_GAUSS = 3


def basis(t: Array | np.ndarray, derivative: int) -> list[Array | np.ndarray]:
    """The two values, the two slopes and the bubble of a cell of width 1, differentiated 0, 1 or 2 times at `t`."""
    if derivative == 0:
        return [
            1 - 3 * t**2 + 2 * t**3,
            3 * t**2 - 2 * t**3,
            t - 2 * t**2 + t**3,
            t**3 - t**2,
            t**2 * (1 - t) ** 2,
        ]
    if derivative == 1:
        return [6 * t**2 - 6 * t, 6 * t - 6 * t**2, 1 - 4 * t + 3 * t**2, 3 * t**2 - 2 * t, 2 * t - 6 * t**2 + 4 * t**3]
    return [12 * t - 6, 6 - 12 * t, 6 * t - 4, 6 * t - 2, 2 - 12 * t + 12 * t**2]


@functools.cache
def _closure() -> tuple[np.ndarray, np.ndarray]:
    r"""The first three slopes and two bubbles at an end, from the first eight nodes: shapes `(3, 8)` and `(2, 8)`.

    The least-norm solution of: both are exact for polynomials up to degree four, and every $\varphi_k$ has its centre
    of mass at $x_k = k$. Integrals over a cell of the basis functions: values 1/2, slopes ±1/12, bubble 1/30; first
    moments about node j of the pair of slope functions 2/30 (one alone 1/30), of a half value function 3/20.
    """
    size = WINDOW
    unknowns = (_NUM_SLOPES + _NUM_BUBBLES) * size
    nodes = np.arange(size, dtype=float)
    rows, rights = [], []

    def ask(entries: dict[int, np.ndarray], right: float) -> None:
        row = np.zeros((_NUM_SLOPES + _NUM_BUBBLES, size))
        for functional, coefficients in entries.items():
            row[functional] += coefficients
        rows.append(row.reshape(unknowns))
        rights.append(right)

    for power in range(_DEGREE + 1):
        for j in range(_NUM_SLOPES):
            ask({j: (nodes - j) ** power}, float(power == 1))
        for m in range(_NUM_BUBBLES):
            # x⁴ leaves the bubble t²(1 − t)² to its cubic, lower powers none.
            ask({_NUM_SLOPES + m: (nodes - m - 0.5) ** power}, float(power == 4))

    # What the interior differences put on each node, far enough to the right to see all of them.
    far = 3 * size
    slopes, bubbles, moments = np.zeros(far), np.zeros(far), np.zeros(far)
    for j in range(_NUM_SLOPES, far - 3):
        slopes[j - 3 : j + 4] += _SLOPE
    for m in range(_NUM_BUBBLES, far - 3):
        bubbles[m - 2 : m + 4] += _BUBBLE
        moments[m - 2 : m + 4] += _BUBBLE * (m + 0.5)
    for k in range(size):
        unit = np.eye(size)[k]
        entries = {0: unit * (1 / 30 - k / 12)}
        entries |= {j: unit / 15 for j in range(1, _NUM_SLOPES)}
        entries |= {_NUM_SLOPES + m: unit * (m + 0.5 - k) / 30 for m in range(_NUM_BUBBLES)}
        known = slopes[k] / 15 + (moments[k] - k * bubbles[k]) / 30 + (3 / 20 if k == 0 else 0)
        ask(entries, -known)
    solution = np.linalg.lstsq(np.array(rows), np.array(rights), rcond=1e-12)[0].reshape(-1, size)
    return solution[:_NUM_SLOPES], solution[_NUM_SLOPES:]


@functools.cache
def cells(num_cells: int, periodic: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each cell the nodes that it looks at, shape `(num_cells, 8)`, and the matrices that take their values to two
    values, two slopes (per cell width) and a bubble, shape `(num_cells, 5, 8)`.
    """
    interior = np.zeros((5, WINDOW))
    interior[0, 3] = interior[1, 4] = 1
    interior[2, 0:7], interior[3, 1:8], interior[4, 1:7] = _SLOPE, _SLOPE, _BUBBLE
    matrices = np.tile(interior, (num_cells, 1, 1))
    first = np.arange(num_cells) - 3
    if periodic:
        return (first[:, None] + np.arange(WINDOW)) % num_cells, matrices
    first = np.clip(first, 0, num_cells + 1 - WINDOW)
    slopes, bubbles = _closure()
    for m in range(_NUM_SLOPES):
        left = np.zeros((5, WINDOW))
        left[0, m] = left[1, m + 1] = 1
        left[2] = slopes[m]
        left[3] = slopes[m + 1] if m + 1 < _NUM_SLOPES else np.append(_SLOPE, 0)
        left[4] = bubbles[m] if m < _NUM_BUBBLES else np.append(_BUBBLE, [0, 0])
        matrices[m] = left
        # The other end is the mirror image: ends change places, slopes their sign.
        matrices[num_cells - 1 - m] = (left[[1, 0, 3, 2, 4]] * np.array([1, 1, -1, -1, 1])[:, None])[:, ::-1]
    return first[:, None] + np.arange(WINDOW), matrices


@functools.cache
def quadrature(num_cells: int, periodic: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Quadrature points: their cells, their places in the cells (from 0 to 1) and their weights, for cells of width 1.

    Three Gauss points in each cell. In the first and the last one, where integrands such as $1/\sqrt y$ may be
    singular at the end, six for $\tau$ with $t = \tau^2$, which is exact for the same polynomials and makes a root a
    polynomial.
    """
    inner, outer = (np.polynomial.legendre.leggauss(k) for k in (_NUM_GAUSS, 2 * _NUM_GAUSS))
    places, weights = (inner[0] + 1) / 2, inner[1] / 2
    found = [(np.full(_NUM_GAUSS, m), places, weights) for m in range(num_cells)]
    if not periodic:
        root = (outer[0] + 1) / 2
        graded, share = root**2, root * outer[1]
        found[0] = (np.full(2 * _NUM_GAUSS, 0), graded, share)
        found[-1] = (np.full(2 * _NUM_GAUSS, num_cells - 1), 1 - graded[::-1], share[::-1])
    where, places, weights = (np.concatenate(part) for part in zip(*found, strict=True))
    return where, places, weights


@functools.cache
def tables(num_cells: int, periodic: bool, derivative: int) -> tuple[np.ndarray, np.ndarray]:
    """For each quadrature point the nodes of its cell, shape `(num_points, 8)`, and what takes their values to a
    derivative there, for cells of width 1.
    """
    windows, matrices = cells(num_cells, periodic)
    where, places, _ = quadrature(num_cells, periodic)
    return windows[where], np.einsum("bp,pbw->pw", np.array(basis(places, derivative)), matrices[where])


@functools.cache
def node_weights(num_cells: int, periodic: bool) -> np.ndarray:
    r"""$\int\varphi_j$ for cells of width 1, for all nodes: 1 inside, and near an end those of the closure."""
    windows, table = tables(num_cells, periodic, 0)
    weights = np.zeros(num_cells if periodic else num_cells + 1)
    np.add.at(weights, windows, quadrature(num_cells, periodic)[2][:, None] * table)
    return weights


@functools.cache
def band(num_cells: int, periodic: bool, derivative: int) -> np.ndarray:
    r"""$\int\varphi_i^{(k)}\varphi_j^{(k)}$ for cells of width 1 by its diagonals: entry `[i, 7 + j - i]` (modulo the
    number of nodes where periodic), shape `(num_nodes, 15)`.
    """
    windows, table = tables(num_cells, periodic, derivative)
    local = quadrature(num_cells, periodic)[2][:, None, None] * table[:, :, None] * table[:, None]
    places = np.arange(WINDOW)
    diagonals = np.broadcast_to(WINDOW - 1 + places[None, None] - places[None, :, None], local.shape)
    rows = np.broadcast_to(windows[:, :, None], local.shape)
    found = np.zeros((num_cells if periodic else num_cells + 1, 2 * WINDOW - 1))
    np.add.at(found, (rows, diagonals), local)
    return found


def dense(diagonals: np.ndarray) -> np.ndarray:
    """The matrix of which [`band`][] holds the diagonals (wrapping, where they are those of a periodic axis)."""
    size = diagonals.shape[0]
    matrix = np.zeros((size, size))
    rows = np.broadcast_to(np.arange(size)[:, None], diagonals.shape)
    columns = (rows + np.arange(diagonals.shape[1]) - WINDOW + 1) % size
    np.add.at(matrix, (rows, columns), diagonals)
    return matrix
