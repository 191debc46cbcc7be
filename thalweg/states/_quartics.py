r"""From values at equally spaced nodes to a smooth function: a quartic on each cell, once continuously differentiable.

On the cell between nodes $m$ and $m + 1$ (coordinate $t$ from 0 to 1) the function is the cubic with the values and
slopes at both nodes, plus a bubble $c_m\,t^2(1-t)^2$ that gives the cell its mean. Slopes $s_j$ and bubbles $c_m$ are
linear in the values: centred differences in the interior, and near an end one-sided ones, the *closure*.

With $\varphi_j$ the function whose value is 1 at node $j$ and 0 at the others, and $Iy = \sum_j y_j\varphi_j$, the
variation of an integral functional at a smooth y is $\partial F/\partial y_j = \int\mathrm{EL}\,\varphi_j$ + (terms at
the ends) + $\int \partial_{y''y''}L\,(Iy - y)''\,\varphi_j'' + \dots$, where EL is the left side of the Euler–Lagrange
equation. Divided by the weight $w_j = \int\varphi_j$ it is EL at the node to second order if

- the centre of mass of $\varphi_j$ is its node: $\int (x - x_j)\,\varphi_j = 0$. In the interior that is symmetry; hat
  functions do not meet it at an end, where half a hat has its mass a third of a cell inside;
- $Iy$ is right to the fifth degree. As $\varphi_j''/w_j \sim h^{-3}$ on a few cells of width h, an error $h^3$ of $y''$
  near an end, all that the fourth degree gives, leaves EL an error of first order. (For a quintic the quartic with
  its slopes and its means leaves $(Iy - y)''$ orthogonal to all quartics of that kind, which is as good as nothing.)

The two are compatible for the right bubble only. If every moment is zero, so is $\sum_j g(x_j)\int (x - x_j)\varphi_j =
\int xIg - I(xg)$ for each g on a half-line. The first moment of $x^5$ on a cell is missed by $M = -1/840$; if the
mean of $x^6$ is missed by $\mu$, that is $(M - \mu)\int g^{(5)}/5! = (\mu - M)\,g^{(4)}(0)/5!$. So $\mu = M$, for which
the bubble needs eight nodes.
"""

import functools

import numpy as np

from thalweg._types import Array

# The closures of two ends must not meet.
FEWEST_CELLS, _MOST = 8, 8
_DEGREE = 5
_SLOPE = np.array([-1, 9, -45, 0, 45, -9, 1]) / 60
_BUBBLE = np.array([-11, 95, -219, 135, 135, -219, 95, -11]) / 1920
# Of x⁶ it is what misses the mean by −1/840; other powers below the eighth leave none.
_BUBBLE_OF = {4: 1.0, 6: 0.5}

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


def _extent(num_cells: int) -> int:
    """How many slopes and bubbles at each end are one-sided; they look at twice as many nodes. More are smoother."""
    return min(num_cells // 2, _MOST)


def _half_line(count: int) -> np.ndarray:
    """The first cells of a half-line as an affine function of the closure: what is there without it, then what each of
    its coefficients (for each slope, then each bubble, those of the first nodes) adds to the matrices of [`cells`][].

    Shape `(1 + 4 count², 2 count + 4, 5, 2 count + 8)`: enough to see all that the first `2 count` nodes take part in.
    """
    size = 2 * count
    parts = np.zeros((1 + 2 * count * size, size + 4, 5, size + 8))
    for m in range(size + 4):
        parts[0, m, 0, m] = parts[0, m, 1, m + 1] = 1
        for row, j in ((2, m), (3, m + 1)):
            if j >= count:
                parts[0, m, row, j - 3 : j + 4] = _SLOPE
        if m >= count:
            parts[0, m, 4, m - 3 : m + 5] = _BUBBLE
    node = np.arange(size)
    for j in range(count):
        own = 1 + j * size + node
        parts[own, j, 2, node] = 1
        if j > 0:
            parts[own, j - 1, 3, node] = 1
        parts[own + count * size, j, 4, node] = 1
    return parts


@functools.cache
def _closure(count: int) -> np.ndarray:
    r"""The matrices of [`cells`][] for the first `count` cells at an end, shape `(count, 5, 2 count)`.

    Slopes and bubbles are exact to the fifth degree, and each $\varphi_k$ has its centre of mass at $x_k = k$. What
    that leaves free makes least $\sum_k \int |\varphi_k''|^2$, which keeps explicit steps long, and with weights the
    second and third moments of $\varphi_k$ and the errors for $(x - x_j)^6$, which are what remains of the error of the
    variation. The weights come from a search over the variations of seven functionals, the longest explicit steps and
    the start of a brachistochrone. On few nodes small errors make $\varphi_k$ rough, so they weigh less there.
    """
    size = 2 * count
    parts = _half_line(count)
    unknowns = parts.shape[0] - 1
    root, share = np.polynomial.legendre.leggauss(_DEGREE)
    places, weights = (root + 1) / 2, share / 2

    def functions(derivative: int) -> np.ndarray:
        return np.einsum("bq,ucbk->ucqk", np.array(basis(places, derivative)), parts)[..., :size]

    away = np.arange(size + 4)[:, None, None] + places[:, None] - np.arange(size)
    moments = [np.einsum("q,ucqk,cqk->ku", weights, functions(0), away**power) for power in (1, 2, 3)]
    bending = np.einsum("q,ucqk->cqku", np.sqrt(weights), functions(2))
    bending[:3] *= np.array([6, 2, 1.4])[:, None, None, None]
    bending[:, :, :3] *= np.array([0.5, 0.3, 2])[:, None]

    def remainders(power: int, scale: float) -> np.ndarray:
        """What slopes and bubbles miss of a power about their nodes and middles."""
        rows = np.zeros((2, count, 1 + unknowns))
        for kind, (shift, due) in enumerate(((0.0, float(power == 1)), (0.5, _BUBBLE_OF.get(power, 0.0)))):
            for j in range(count):
                begin = 1 + (kind * count + j) * size
                rows[kind, j, begin : begin + size] = ((np.arange(size) - j - shift) / scale) ** power
                rows[kind, j, 0] = -due / scale**power
        return rows.reshape(-1, 1 + unknowns)

    exact = np.concatenate([*(remainders(power, count / 1.5) for power in range(_DEGREE + 1)), moments[0]])
    firm = (count / _MOST) ** 3
    errors = [60 * firm * moments[1], firm * moments[2], 4 / 720 * remainders(6, 1.0)]
    small = np.concatenate([bending.reshape(-1, 1 + unknowns), *errors])
    # Some conditions follow from others: the moments of powers that are exact.
    left, sizes, right = np.linalg.svd(exact[:, 1:])
    rank = int(np.sum(sizes > 1e-10 * sizes[0]))
    solution = right[:rank].T @ ((left.T @ -exact[:, 0])[:rank] / sizes[:rank])
    free = small[:, 1:] @ right[rank:].T
    solution += right[rank:].T @ np.linalg.solve(free.T @ free, -free.T @ (small[:, 0] + small[:, 1:] @ solution))
    return np.tensordot(np.append(1.0, solution), parts, axes=1)[:count, :, :size]


@functools.cache
def cells(num_cells: int, periodic: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each cell the nodes that it looks at, shape `(num_cells, size)`, and the matrices that take their values to
    two values, two slopes (per cell width) and a bubble, shape `(num_cells, 5, size)`; `size` is 8, or up to 16 where
    there are ends.
    """
    count = 4 if periodic else _extent(num_cells)
    size, shift = 2 * count, count - 4
    interior = np.zeros((5, size))
    interior[0, count - 1] = interior[1, count] = 1
    interior[2, shift : shift + 7] = interior[3, shift + 1 : shift + 8] = _SLOPE
    interior[4, shift : shift + 8] = _BUBBLE
    matrices = np.tile(interior, (num_cells, 1, 1))
    first = np.arange(num_cells) - count + 1
    if periodic:
        return (first[:, None] + np.arange(size)) % num_cells, matrices
    matrices[:count] = _closure(count)
    # The other end is the mirror image: ends change places, slopes their sign.
    mirrored = matrices[:count, [1, 0, 3, 2, 4]] * np.array([1, 1, -1, -1, 1])[:, None]
    matrices[num_cells - count :] = mirrored[::-1, :, ::-1]
    return np.clip(first, 0, num_cells + 1 - size)[:, None] + np.arange(size), matrices


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
    """For each quadrature point the nodes of its cell, shape `(num_points, size)`, and what takes their values to a
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
    r"""$\int\varphi_i^{(k)}\varphi_j^{(k)}$ for cells of width 1 by its diagonals: entry `[i, size - 1 + j - i]`
    (modulo the number of nodes where periodic), shape `(num_nodes, 2 size - 1)`, `size` as in [`cells`][].
    """
    windows, table = tables(num_cells, periodic, derivative)
    size = table.shape[1]
    local = quadrature(num_cells, periodic)[2][:, None, None] * table[:, :, None] * table[:, None]
    places = np.arange(size)
    diagonals = np.broadcast_to(size - 1 + places[None, None] - places[None, :, None], local.shape)
    rows = np.broadcast_to(windows[:, :, None], local.shape)
    found = np.zeros((num_cells if periodic else num_cells + 1, 2 * size - 1))
    np.add.at(found, (rows, diagonals), local)
    return found


def dense(diagonals: np.ndarray) -> np.ndarray:
    """The matrix of which [`band`][] holds the diagonals (wrapping, where they are those of a periodic axis)."""
    size, width = diagonals.shape
    matrix = np.zeros((size, size))
    rows = np.broadcast_to(np.arange(size)[:, None], diagonals.shape)
    columns = (rows + np.arange(width) - width // 2) % size
    np.add.at(matrix, (rows, columns), diagonals)
    return matrix
