"""Functionals of densities on grids with the closed forms of their variations, in NumPy, with sums over all pairs of
cells in place of transforms and over faces one at a time.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import thalweg as tw
from thalweg import generators as gen

WALL, WRAP = tw.NoFlux(), tw.Periodic()
GRIDS = {
    "line": tw.Grid(-1.0, 1.5, 11),
    "odd circle": tw.Grid(-1.0, 1.5, 9, WRAP),
    "cylinder": tw.Grid((-1.0, 0.0), (1.0, 1.5), (5, 6), (WALL, WRAP)),
    "room": tw.Grid((-1.0, 0.0), (1.0, 1.5), (6, 5), mask=lambda x: (x[0] < 0.1) | (x[1] > 0.5)),
    "box": tw.Grid((-1.0, 0.0, 0.2), (1.0, 1.5, 1.4), (4, 5, 3)),
    "even and odd torus": tw.Grid((-1.0, 0.0, 0.2), (1.0, 1.5, 1.4), (4, 3, 5), (WRAP, WALL, WRAP)),
}


def inside(grid):
    return np.ones(grid.shape, bool) if grid.mask is None else grid.mask


def a_density(grid, seed=0):
    values = np.random.default_rng(seed).uniform(0.2, 2.0, grid.shape)
    return tw.GridDensity.normalised(values, grid)


def centres(grid):
    axes = [a + (np.arange(n) + 0.5) * h for a, n, h in zip(grid.lower, grid.shape, grid.spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def pair_sum(kernel, values, grid):
    """Σ_j W(x_i − x_j) q_j h^d over all pairs; the nearest image on periodic axes, the mean of two that are equally
    near. `kernel` takes displacements in cells, shape (..., dim)."""
    cells = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1).reshape(-1, grid.dim)
    apart = cells[:, None] - cells[None]
    wraps = [axis for axis in range(grid.dim) if grid.is_periodic(axis)]
    for axis in wraps:
        n = grid.shape[axis]
        apart[..., axis] = (apart[..., axis] + n // 2) % n - n // 2
    images = [apart]
    for axis in wraps:
        n = grid.shape[axis]
        if n % 2 == 0:
            other = [np.where((np.arange(grid.dim) == axis) & (z == -n // 2), n // 2, z) for z in images]
            images = [*images, *other]
    weights = sum(kernel(z) for z in images) / len(images)
    return (weights @ values.reshape(-1)).reshape(grid.shape) * grid.cell_volume


def of_points(kernel, grid, at_zero=None):
    """A kernel of displacements in cells, from one of lengths; `at_zero` is its mean over the cell around zero."""

    def in_cells(z):
        length = np.sqrt(np.sum((z * np.array(grid.spacing)) ** 2, axis=-1))
        if at_zero is None:
            return kernel(length)
        return np.where(length > 0, kernel(np.where(length > 0, length, 1.0)), at_zero)

    return in_cells


def numeric_mean(kernel, spacing):
    """The mean of a radial function over a cell around zero, singular at zero: Gauss points after x = t⁸, which
    smooths the corner; by octants."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t, w = 0.5 * (nodes + 1), 0.5 * weights
    points, factor = t**8, w * 8 * t**7
    axes = [0.5 * h * points for h in spacing]
    square = sum(np.meshgrid(*(a**2 for a in axes), indexing="ij"))
    total = np.ones(())
    for _ in spacing:
        total = np.multiply.outer(total, factor)
    return float(np.sum(total * kernel(np.sqrt(square))))


def target_log(x):
    return -0.7 * np.sum((x - 0.2) ** 2, axis=-1) - 0.3 * np.sum(np.cos(2 * x), axis=-1)


def target(dim):
    return tw.Target(lambda x: -0.7 * jnp.sum((x - 0.2) ** 2) - 0.3 * jnp.sum(jnp.cos(2 * x)), dim)


def wave(x):
    return np.sin(3 * x[..., 0]) + np.sum(x**2, axis=-1)


def jax_wave(x):
    return jnp.sin(3 * x[0]) + jnp.sum(x**2)


# f(r) − r f′(r) of closed form 20, and w(r) = r² f″(r).
GENERATORS = {
    "reverse kl": (gen.reverse_kl, lambda r: 1 - np.log(r), lambda r: 1 + 0 * r),
    "forward kl": (gen.forward_kl, lambda r: -r, lambda r: r),
    "pearson": (gen.pearson_chi2, lambda r: 1 - r**2, lambda r: 2 * r**2),
    "neyman": (gen.neyman_chi2, lambda r: 2 / r - 2, lambda r: 2 / r),
    "hellinger": (gen.squared_hellinger, lambda r: 1 - np.sqrt(r), lambda r: np.sqrt(r) / 2),
    "jensen shannon": (gen.jensen_shannon, lambda r: -np.log((1 + r) / 2) / 2, lambda r: r / (2 * (1 + r))),
    "jeffreys": (gen.jeffreys, lambda r: 1 - r - np.log(r), lambda r: 1 + r),
    **{f"alpha {a}": (gen.alpha(a), lambda r, a=a: (1 - r**a) / a, lambda r, a=a: r**a) for a in (-1.5, 0.5, 2.0, 3.0)},
    "a user's": (
        lambda r: (r - 1) ** 4,
        lambda r: (r - 1) ** 4 - 4 * r * (r - 1) ** 3,
        lambda r: 12 * r**2 * (r - 1) ** 2,
    ),
}


def functionals(grid):
    """name: (energy, ξ as an array, the second variation as a function of a direction or None)."""
    q, x, dim, h = a_density(grid), centres(grid), grid.dim, grid.cell_volume
    values, spacing = np.asarray(q.values), grid.spacing
    inner = inside(grid)
    filled = np.where(inner, values, 1)
    p = a_density(grid, 1)
    p_values = np.asarray(p.values)
    potential = wave(x)
    found = {
        "potential": (tw.PotentialEnergy(jax_wave), potential, lambda v: 0 * v),
        "potential of cells": (tw.PotentialEnergy(potential, grid), potential, lambda v: 0 * v),
        "entropy": (tw.Entropy(), np.log(filled) + 1, lambda v: v / values),
        "porous medium 2": (tw.PorousMedium(2.0), 2 * values, lambda v: 2 * v),
        "porous medium 3.5": (tw.PorousMedium(3.5), 1.4 * values**2.5, lambda v: 3.5 * values**1.5 * v),
        "fast diffusion": (tw.PorousMedium(0.6), -1.5 * filled**-0.4, lambda v: 0.6 * filled**-1.4 * v),
        "a user's e(q)": (
            tw.InternalEnergy(lambda s: jnp.cosh(s) + s * jnp.log1p(s)),
            np.sinh(values) + np.log1p(values) + values / (1 + values),
            lambda v: (np.cosh(values) + 1 / (1 + values) + 1 / (1 + values) ** 2) * v,
        ),
        "fermi": (
            tw.InternalEnergy(lambda s: s * jnp.log(s) + (9 - s) * jnp.log(9 - s)),
            np.log(filled) - np.log(9 - values),
            lambda v: (1 / values + 1 / (9 - values)) * v,
        ),
        "half the square of a mean": (
            tw.Functional(lambda s: 0.5 * s.expect(jax_wave) ** 2),
            potential * np.sum(potential * values) * h,
            lambda v: potential * np.sum(potential * v) * h,
        ),
        "variance": (
            tw.Functional(lambda s: s.expect(lambda z: z[0] ** 2) - s.expect(lambda z: z[0]) ** 2),
            x[..., 0] ** 2 - 2 * x[..., 0] * np.sum(x[..., 0] * values) * h,
            lambda v: -2 * x[..., 0] * np.sum(x[..., 0] * v) * h,
        ),
        "a sum": (
            2.0 * tw.PotentialEnergy(jax_wave) - 0.5 * tw.PorousMedium(2.0) + tw.Entropy() / 4,
            2 * potential - values + (np.log(filled) + 1) / 4,
            lambda v: (-1 + 0.25 / values) * v,
        ),
        "congestion": (tw.Congestion(99.0), 0 * values, lambda v: 0 * v),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        goals = (("function", target(dim), target_log(x)), ("grid", p, np.log(p_values)))
        found["kl to a grid"] = (tw.KL(p), 1 - goals[1][2] + np.log(values), lambda v: v / values)
        for (name, (generator, slope, mobility)), (kind, goal, logs) in zip(
            GENERATORS.items(), itertools.cycle(goals), strict=False
        ):
            r = np.exp(logs) / values
            curvature = mobility(r) / values
            entry = (tw.FDivergence(generator, goal), slope(r), lambda v, c=curvature: c * v)
            found[f"{name} to a {kind}"] = entry

    def pairs(name, energy, kernel):
        found[name] = (energy, pair_sum(kernel, values, grid), lambda v: pair_sum(kernel, v, grid))

    smooth = lambda s: np.exp(-(s**2) / 0.18)  # noqa: E731
    pairs(
        "quadratic interaction",
        tw.InteractionEnergy(lambda z: 0.5 * jnp.sum(z**2)),
        of_points(lambda s: s**2 / 2, grid),
    )
    pairs("gaussian interaction", tw.InteractionEnergy(tw.kernels.gaussian(0.3)), of_points(smooth, grid))
    skew = lambda z: np.cos(np.sum(z * np.array(spacing) * np.arange(1, dim + 1), axis=-1))  # noqa: E731
    oblique = tw.InteractionEnergy(lambda z: jnp.cos(z @ jnp.arange(1.0, dim + 1)))
    pairs("oblique interaction", oblique, skew)
    odd = tw.InteractionEnergy(lambda z: jnp.sin(z[0]) + 0.5 * jnp.sum(z**2))
    pairs("interaction with an odd part", odd, of_points(lambda s: s**2 / 2, grid))
    powers = lambda s: s**2 / 2 - s**-0.5 / -0.5  # noqa: E731
    mean = numeric_mean(powers, spacing)
    powers_energy = tw.InteractionEnergy(tw.kernels.attractive_repulsive(2, -0.5))
    pairs("attraction and singular repulsion", powers_energy, of_points(powers, grid, mean))
    logs = lambda s: s**3 / 3 - np.log(s)  # noqa: E731
    logs_energy = tw.InteractionEnergy(tw.kernels.attractive_repulsive(3, 0))
    pairs("attraction and logarithmic repulsion", logs_energy, of_points(logs, grid, numeric_mean(logs, spacing)))
    shape = tuple(3 for _ in grid.shape)
    table = np.random.default_rng(5).normal(size=shape)
    table = 0.5 * (table + np.flip(table))

    def of_table(z):
        near = np.all(np.abs(z) <= 1, axis=-1)
        index = np.clip(z, -1, 1) + 1
        return np.where(near, table[tuple(np.moveaxis(index, -1, 0))], 0)

    pairs("a kernel of values", tw.InteractionEnergy(jnp.asarray(table)), of_table)
    if not any(grid.is_periodic(axis) for axis in range(dim)):
        newton = {
            1: lambda s: -s / 2,
            2: lambda s: -np.log(s) / (2 * np.pi),
            3: lambda s: 1 / (4 * np.pi * s),
        }[dim]
        kernel = of_points(newton, grid, numeric_mean(newton, spacing))
        pairs("newtonian", tw.InteractionEnergy(tw.kernels.newtonian(dim)), kernel)
    kernel = of_points(smooth, grid)
    found["mmd to a grid"] = (
        tw.MaximumMeanDiscrepancy(p, tw.kernels.gaussian(0.3)),
        pair_sum(kernel, values - p_values, grid),
        lambda v: pair_sum(kernel, v, grid),
    )
    normal = np.where(inner, np.exp(target_log(x)), 0)
    found["mmd to a function"] = (
        tw.MaximumMeanDiscrepancy(target(dim), tw.kernels.gaussian(0.3)),
        pair_sum(kernel, values - normal / (normal.sum() * h), grid),
        lambda v: pair_sum(kernel, v, grid),
    )
    samples = np.random.default_rng(2).uniform(-0.5, 1.0, (7, dim))
    near = np.mean(smooth(np.sqrt(np.sum((x[..., None, :] - samples) ** 2, axis=-1))), axis=-1)
    found["mmd to samples"] = (
        tw.MaximumMeanDiscrepancy(tw.Samples(jnp.asarray(samples)), tw.kernels.gaussian(0.3)),
        pair_sum(kernel, values, grid) - near,
        lambda v: pair_sum(kernel, v, grid),
    )
    minus_laplacian = lambda v: neighbours(lambda here, there: here - there, v, grid)  # noqa: E731
    found["dirichlet"] = (tw.DirichletEnergy(), minus_laplacian(values), minus_laplacian)
    by_hand = tw.Functional(lambda s: 0.5 * sum(jnp.sum(g**2) for g in s.face_gradients()) * s.grid.cell_volume)
    found["dirichlet by faces"] = (by_hand, minus_laplacian(values), minus_laplacian)
    root = np.sqrt(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        found["fisher information"] = (
            tw.FisherInformation(),
            4 * neighbours(lambda here, there: here - there, root, grid) / root,
            None,
        )
        log_p = np.log(p_values)

        def relative(here, there):
            (r, a), (s, b) = here, there
            return (r * np.exp((b - a) / 2) - s) / r

        found["relative fisher information"] = (
            tw.FisherInformation(p),
            4 * neighbours(relative, np.stack([root, log_p]), grid, stacked=True),
            None,
        )
    return found


def neighbours(term, values, grid, stacked=False):
    """Σ over the open faces of each cell of term(here, there)/h², one face at a time."""
    total = np.zeros(grid.shape)
    inner = inside(grid)
    for axis, (n, h) in enumerate(zip(grid.shape, grid.spacing, strict=True)):
        for cell in itertools.product(*(range(k) for k in grid.shape)):
            for step in (-1, 1):
                there = list(cell)
                there[axis] += step
                if grid.is_periodic(axis):
                    there[axis] %= n
                there = tuple(there)
                if 0 <= there[axis] < n and inner[cell] and inner[there]:
                    pick = (lambda c: values[(slice(None), *c)]) if stacked else (lambda c: values[c])
                    total[cell] += term(pick(cell), pick(there)) / h**2
    return total


def compiled(fn, state):
    """The values of a function of a state; compiled without optimisation, which takes longer than such small runs."""
    return jax.jit(fn).lower(state).compile(compiler_options={"xla_backend_optimization_level": 0})(state)


def at(values, grid):
    """A state with these values, whatever their mass: a functional does not ask."""
    return eqx.tree_at(lambda s: s.values, a_density(grid), jnp.asarray(values))
