"""The cells over which the laws run: representative energies, states, geometries and schemes, and what fits together.

A cell is a choice of each that `tw.why_unsupported` does not refuse. Nothing here says which combinations work, so a
new member of a list meets every law by being listed; `test_cells.py` holds that every public class is listed, and that
the cells do not silently become fewer.
"""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import thalweg as tw
from thalweg import generators, likelihoods
from thalweg.energies import as_energy
from thalweg.states import AbstractState


def _flat(state):
    """The entries of a vector; densities and families have energies of their own."""
    if isinstance(state, AbstractState):
        raise TypeError("a function of a vector")
    return ravel_pytree(state)[0]


def _quadratic(state):
    """Curvatures 1, 2, 3, … on the entries of any pytree of arrays."""
    flat = _flat(state)
    return 0.5 * jnp.sum(jnp.arange(1.0, flat.size + 1) * flat**2)


def _quartic(state):
    """Not convex, with coupled entries."""
    flat = _flat(state)
    return jnp.sum((flat[1:] - flat[:-1] ** 2) ** 2) + 0.25 * jnp.sum((flat**2 - 1) ** 2)


def _of_one_example(state, example):
    """Not quadratic in the entries of any pytree of arrays."""
    return jnp.sum(jnp.log(jnp.cosh(_flat(state) - example)))


def _wavy(point):
    return 0.5 * jnp.sum(point**2) + 0.3 * jnp.sum(jnp.cos(3 * point))


def _soft_attraction(displacement):
    return jnp.sqrt(1 + jnp.sum(displacement**2))


def _log_density(point):
    return -0.5 * jnp.sum((point - 0.3) ** 2) / 0.8 - 0.5 * point.size * jnp.log(2 * jnp.pi * 0.8)


def _of_a_curve(state):
    """∫|∇y|²/2 of a function on a grid, by its nodes."""
    if not isinstance(state, tw.GridFunction):
        raise TypeError("a functional of functions")
    values, grid = state.values, state.grid
    parts = [jnp.sum(jnp.diff(values, axis=i) ** 2) / grid.spacing[i] ** 2 for i in range(grid.dim)]
    return 0.5 * sum(parts[1:], start=parts[0]) * grid.cell_volume


def _to_another_member(state):
    """The divergence to another member of the family."""
    there = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.3), state.params)
    return state.family.kl(state.params, there)


@functools.cache
def _target(dim: int) -> tw.Target:
    return tw.Target(_log_density, dim)


def energies(dim: int) -> dict[str, Any]:
    """Every energy; those with a target need the dimension."""
    return {
        "quadratic": _quadratic,
        "quartic": _quartic,
        "potential": tw.PotentialEnergy(_wavy),
        "entropy": tw.Entropy(),
        "internal": tw.InternalEnergy(lambda q: 0.5 * q**2 + 0.1 * q**3),
        "porous medium": tw.PorousMedium(2.0),
        "fast diffusion": tw.PorousMedium(0.6),
        "interaction": tw.InteractionEnergy(_soft_attraction),
        "kl": tw.KL(_target(dim)),
        "squared hellinger": tw.FDivergence(generators.squared_hellinger, _target(dim)),
        "jensen shannon": tw.FDivergence(generators.jensen_shannon, _target(dim)),
        "dirichlet": tw.DirichletEnergy(),
        "dirichlet of a curve": tw.Functional(_of_a_curve),
        "fisher information": 0.01 * tw.FisherInformation(_target(dim)),
        "discrepancy": tw.MaximumMeanDiscrepancy(tw.Samples(_points(5, dim)), tw.kernels.gaussian(0.9)),
        "congestion": tw.KL(_target(dim)) + tw.Congestion(2.0),
        "sum": tw.PotentialEnergy(_wavy) + 0.5 * tw.Entropy() + 0.3 * tw.InteractionEnergy(_soft_attraction),
        "lasso in a box": as_energy(_quartic) + tw.L1(0.1) + tw.ElasticNet(0.05, 0.2) + tw.Box(-1.1, 1.3),
        "positive": as_energy(_quadratic) + tw.NonNegative(),
        "groups": as_energy(_quadratic) + tw.GroupLasso(0.2),
        "in a ball": as_energy(_quartic) + tw.L2Ball(1.6),
        "on a plane": as_energy(_quartic) + tw.Hyperplane(0.9),
        "simplex": as_energy(_quadratic) + tw.Simplex(),
        "likelihood": tw.NegativeLogLikelihood(jnp.asarray(0.7)),
        "half deviance": tw.HalfDeviance(jnp.asarray([1.0, 0.0, 1.0, 1.0])),
        "likelihood of data": tw.NegativeLogLikelihood(jnp.asarray([1.0, 0.0, 1.0, 1.0])),
        "divergence of members": tw.Functional(_to_another_member),
        "integral": tw.IntegralFunctional(_lagrangian),
        "action": tw.Action(lambda y: jnp.cos(y) + 0.1 * y**2),
        "mini-batch": tw.MiniBatch(_of_one_example, jnp.asarray([0.4, -0.1, 0.9]), batch_size=2),
    }


def _grid_density(grid: tw.Grid) -> tw.GridDensity:
    bump = lambda x: jnp.exp(-jnp.sum((x - 0.4) ** 2)) * (1.2 + jnp.sum(jnp.sin(3 * x)) / x.size)  # noqa: E731
    return tw.GridDensity.from_function(bump, grid)


def _points(num: int, dim: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).normal(0.4, 0.8, (num, dim)))


def _curve(params, inputs):
    return params["a"] * jnp.exp(-params["b"] * inputs)


def _families() -> Any:
    """Every family that has no state of its own, side by side."""
    members = {
        likelihoods.LogNormal(): {"mean": [0.2], "log_scale": [0.1]},
        likelihoods.MultivariateNormal(): {"mean": [0.3, -0.2], "log_diagonal": [0.1, 0.4], "lower": [0.5]},
        likelihoods.Binomial(3): [0.4],
        likelihoods.Categorical(): [0.3, -0.5, 0.1],
        likelihoods.Geometric(): [-0.4],
        likelihoods.NegativeBinomial(): {"log_mean": [0.5], "log_dispersion": [0.1]},
        likelihoods.Exponential(): [0.2],
        likelihoods.Gamma(): {"log_mean": [0.2], "log_shape": [0.6]},
        likelihoods.Beta(): {"log_alpha": [0.4], "log_beta": [-0.1]},
        likelihoods.Dirichlet(): [0.3, 0.5, -0.2],
        likelihoods.VonMises(): [0.6, -0.2],
        likelihoods.StudentT(5.0): {"location": [0.3], "log_scale": [-0.2]},
        likelihoods.Laplace(): {"location": [0.1], "log_scale": [0.2]},
    }
    arrays = jax.tree.map(jnp.asarray, tuple(members.values()), is_leaf=lambda leaf: isinstance(leaf, list))
    return tw.Parametric(arrays, likelihoods.Product(tuple(members)))


def _empirical_fisher() -> tw.EmpiricalFisher:
    """At the regression; it warns of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tw.EmpiricalFisher(jnp.asarray([1.0, 0.0, 1.0, 1.0]), damping=0.1)


def _lagrangian(x, y, slope):
    """Not quadratic, and dependent on all three."""
    return jnp.sqrt(1 + slope**2) + 0.1 * (1 + x[0]) * slope**2 + 0.25 * y**4


@functools.cache
def states() -> dict[str, Any]:
    """Every representation, small."""
    inputs = jnp.linspace(0.0, 1.5, 4)
    weights = jnp.asarray([0.1, 0.2, 0.05, 0.3, 0.15, 0.2])
    return {
        "vector": jnp.asarray([1.2, -0.7, 0.4]),
        "pytree": {"a": jnp.asarray([0.5, -1.1]), "b": jnp.asarray(0.8)},
        "matrix": jnp.asarray([[1.0, -0.4, 0.2], [0.3, 0.9, -0.7]]),
        "probabilities": jnp.asarray([0.5, 0.3, 0.2]),
        "line": _grid_density(tw.Grid(-2.0, 2.5, 24)),
        "circle": _grid_density(tw.Grid(-1.0, 1.5, 20, tw.Periodic())),
        "plane": _grid_density(tw.Grid((-2.0, -1.0), (2.0, 1.5), (10, 8), (tw.NoFlux(), tw.Periodic()))),
        "particles": tw.Particles(_points(6, 2)),
        "weighted particles": tw.Particles(_points(6, 2), log_weights=jnp.log(weights)),
        "kernel particles": tw.Particles(_points(14, 1), density=tw.KernelDensity()),
        "weighted kernel particles": tw.Particles(
            _points(6, 2), log_weights=jnp.log(weights), density=tw.KernelDensity(0.7, shrink=False)
        ),
        "gaussian": tw.Gaussian(jnp.asarray([0.5, -0.2]), jnp.asarray([[0.9, 0.3], [0.3, 0.6]])),
        "normal": tw.Parametric(jnp.asarray([0.3, 1.1, -0.4, 0.6]), likelihoods.Normal(0.8)),
        "normal mean scale": tw.Parametric(
            {"mean": jnp.asarray(0.2), "log_scale": jnp.asarray(0.1)}, likelihoods.NormalMeanScale()
        ),
        "bernoulli": tw.Parametric(jnp.asarray([0.3, -0.8, 0.4, 1.0]), likelihoods.Bernoulli()),
        "poisson": tw.Parametric(jnp.asarray([0.3, -0.2, 0.4, 0.6]), likelihoods.Poisson()),
        "regression": tw.Parametric(
            {"a": jnp.asarray(1.3), "b": jnp.asarray(0.4)},
            likelihoods.Regression(_curve, inputs, likelihoods.Normal(0.5)),
        ),
        # Given at one end and free at the other, long enough that steps of 0.05 are short.
        "curve": tw.GridFunction.from_function(
            lambda x: 0.7 + 0.3 * jnp.sin(3 * jnp.pi / 8 * x), tw.Grid(0.0, 4.0, 10), (tw.Dirichlet(0.7), tw.Natural())
        ),
        "families": _families(),
    }


def _norms_of_matrices() -> Any:
    return {
        "columns": tw.EuclideanProduct((tw.GroupNorm(), tw.OneToTwoNorm(), tw.OneToRMSNorm())),
        "singular values": tw.SumProduct((tw.NuclearNorm(), tw.SchattenNorm(3.0), tw.FrobeniusNorm())),
        "dense": (tw.RMSToMaxNorm(), tw.RMSToRMSNorm()),
    }


@functools.cache
def geometries() -> dict[str, Any]:
    """Every geometry."""
    matrix = jnp.asarray([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.5]])
    return {
        "euclidean": tw.Euclidean(),
        "mahalanobis": tw.Mahalanobis(matrix),
        "max norm": tw.MaxNorm(),
        "one norm": tw.OneNorm(),
        "p norm": tw.PNorm(3.0),
        "spectral norm": tw.SpectralNorm(),
        "norms of matrices": tw.MaxProduct(_norms_of_matrices()),
        "product of norms": tw.MaxProduct({"a": tw.Euclidean(), "b": tw.MaxNorm()}, {"a": 1.0, "b": 2.0}),
        "bregman": tw.Bregman(tw.SimplexEntropy()),
        "hessian": tw.Hessian(lambda x: jnp.sum(jnp.cosh(x))),
        "riemannian": tw.Riemannian(lambda x: jnp.diag(1 + x**2) + 0.1),
        "fisher-rao": tw.FisherRao(),
        "damped fisher-rao": tw.FisherRao(damping=0.2),
        "empirical fisher": _empirical_fisher(),
        "wasserstein": tw.Wasserstein(),
        "hellinger-kantorovich": tw.HellingerKantorovich(reaction=0.7, transport=1.3),
        "spherical hellinger": tw.HellingerKantorovich(reaction=0.7, transport=0.0, conserve_mass=True),
        "l2": tw.L2(),
        "sobolev": tw.Sobolev(length=0.4),
    }


@functools.cache
def schemes() -> dict[str, Any]:
    """Every scheme, with steps that suit the small states here."""
    return {
        "explicit": tw.Explicit(1e-4),
        "backtracking": tw.Explicit(tw.Backtracking(0.5)),
        "constrained": tw.Constrained(1e-3),
        "constrained ball": tw.Constrained(0.1, tw.NewtonBall()),
        "proximal": tw.Proximal(0.05),
        "proximal by newton": tw.Proximal(0.05, tw.Newton()),
        "proximal by lbfgs": tw.Proximal(0.05, tw.QuasiNewton()),
        "jko on the line": tw.Proximal(0.05, tw.LineJKO()),
        "jko by back and forth": tw.Proximal(0.05, tw.BackAndForth()),
        "jko by monge and ampere": tw.Proximal(0.05, tw.MongeAmpereJKO()),
        "linearised jko": tw.Proximal(0.05, tw.LinearisedJKO()),
        "continuous": tw.Continuous(0.05),
        "continuous by ode": tw.Continuous(0.05, tw.ODESolver(diffrax_solver())),
        "continuous by exponentials": tw.Continuous(0.05, tw.ExponentialRosenbrock()),
        "continuous by finite volumes": tw.Continuous(0.05, tw.FiniteVolume()),
        "continuous by exact exponentials": tw.Continuous(0.05, tw.ExponentialFiniteVolume()),
        "continuous by implicit volumes": tw.Continuous(0.05, tw.ImplicitFiniteVolume()),
        "continuous by the replicator": tw.Continuous(0.05, tw.ReplicatorIntegrator()),
        "continuous by splitting": tw.Continuous(0.05, tw.TransportReactionSplitting()),
        "langevin": tw.Langevin(0.01),
        "linearly implicit": tw.LinearlyImplicit(0.05),
        "learnt scale": tw.LinearlyImplicit(scale=tw.LearntDiagonal(), solver=tw.DenseSpectrum()),
        "krylov": tw.LinearlyImplicit(0.05, solver=tw.Krylov(6)),
        "gauss newton": tw.LinearlyImplicit(0.05, curvature=tw.GaussNewton()),
        "forward backward": tw.ForwardBackward(1e-3),
        "proximal newton": tw.ProximalNewton(),
        "momentum": tw.Momentum(0.02, restart=tw.SpeedRestart()),
        "heavy ball": tw.Momentum(0.02, tw.ConstantDamping(1.0), tw.GradientRestart()),
        "mirror momentum": tw.MirrorMomentum(0.02),
        "explicit with a transform": tw.Explicit(1e-4, transform=optax.trace(0.5)),
        "continuous by implicit volumes of order two": tw.Continuous(0.05, tw.ImplicitFiniteVolume(order=2)),
    }


# What differs from another state or geometry only in its shape or in a number meets few of the others.
ALIKE = {
    "pytree": ("euclidean", "mahalanobis", "max norm", "product of norms"),
    "matrix": ("p norm", "spectral norm"),
    "probabilities": ("bregman",),
    "bregman": ("probabilities",),
    "product of norms": ("pytree",),
    # Each of these by itself, with all the others: test_geometry_laws.py. A Hessian makes the metric of a Riemannian.
    "norms of matrices": (),
    "hessian": (),
    "riemannian": ("vector",),
    "damped fisher-rao": ("normal mean scale", "regression"),
    "empirical fisher": ("regression",),
    # What transport and reaction do alone, every density on a grid meets.
    "hellinger-kantorovich": ("plane",),
    "spherical hellinger": ("line",),
    # Eighteen families side by side take minutes to compile; test_likelihoods.py has each of them.
    "families": (),
}

# Schemes with a solver named that `None` would also choose: in the default run they meet one or two states only.
VARIANTS = {
    "constrained ball": [("vector", "euclidean"), ("poisson", "fisher-rao")],
    "proximal by newton": [("vector", "euclidean")],
    "proximal by lbfgs": [("vector", "euclidean"), ("weighted particles", "wasserstein"), ("poisson", "fisher-rao")],
    "jko on the line": [("line", "wasserstein")],
    # The last of them is the default on planes; these have tests of their own too, at sizes that suit them.
    "jko by back and forth": [],
    "jko by monge and ampere": [("plane", "wasserstein")],
    "linearised jko": [],
    "continuous by ode": [("matrix", "p norm"), ("circle", "wasserstein")],
    "continuous by exponentials": [("vector", "mahalanobis")],
    "continuous by finite volumes": [("plane", "wasserstein")],
    "continuous by exact exponentials": [("circle", "wasserstein")],
    "continuous by implicit volumes": [("plane", "wasserstein")],
    "continuous by implicit volumes of order two": [("plane", "wasserstein")],
    "continuous by the replicator": [("line", "fisher-rao")],
    "continuous by splitting": [],
    # These meet few, as what they add to `Explicit` is the same everywhere.
    "linearly implicit": [("vector", "mahalanobis"), ("poisson", "fisher-rao")],
    "learnt scale": [("vector", "euclidean")],
    "krylov": [("pytree", "euclidean")],
    "gauss newton": [("regression", "fisher-rao")],
    "momentum": [
        ("vector", "p norm"),
        ("vector", "riemannian"),
        ("weighted particles", "wasserstein"),
        ("gaussian", "wasserstein"),
    ],
    "heavy ball": [("matrix", "p norm"), ("normal mean scale", "fisher-rao"), ("curve", "l2"), ("line", "fisher-rao")],
    "mirror momentum": [("probabilities", "bregman")],
    "explicit with a transform": [("vector", "euclidean")],
    # On smooth energies they are the explicit step and Newton's; `tests/exact/test_proximable.py` has the rest.
    "forward backward": [("vector", "euclidean")],
    "proximal newton": [("pytree", "euclidean")],
}


def diffrax_solver() -> Any:
    """An explicit solver for the cells that name one."""
    import diffrax

    return diffrax.Tsit5()


def dim_of(state: Any) -> int:
    """The dimension of the space of a density, else 1."""
    return getattr(state, "dim", 1)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination, by names; `scheme` is `None` where a law needs none."""

    energy: str
    state: str
    geometry: str
    scheme: str | None = None

    def __str__(self) -> str:
        return " - ".join(name for name in dataclasses.astuple(self) if name is not None)

    @property
    def parts(self) -> tuple[Any, Any, Any, Any]:
        """The four objects."""
        state = states()[self.state]
        scheme = None if self.scheme is None else schemes()[self.scheme]
        return energies_for(self.state)[self.energy], state, geometries()[self.geometry], scheme


@functools.cache
def energies_for(state: str) -> dict[str, Any]:
    """The energies, made once for each state, so that their identity does not change."""
    return energies(dim_of(states()[state]))


@functools.cache
def pairs() -> tuple[tuple[str, str], ...]:
    """The states and geometries that have a metric together, less those that would show nothing new."""
    found = []
    for (state, x), (geometry, d) in itertools.product(states().items(), geometries().items()):
        if state not in ALIKE.get(geometry, (state,)) or geometry not in ALIKE.get(state, (geometry,)):
            continue
        try:
            d.at(x)
        except (tw.UnsupportedCombination, ValueError):
            continue
        found.append((state, geometry))
    return tuple(found)


@functools.cache
def is_supported(cell: Cell) -> bool:
    """Whether the four choices can be put together."""
    energy, state, geometry, scheme = cell.parts
    return tw.why_unsupported(energy, state, geometry=geometry, scheme=scheme) is None


@functools.cache
def energies_at(state: str, geometry: str) -> tuple[Cell, ...]:
    """The cells of a state in a geometry, less their schemes, whose first variation has a steepest descent."""
    found = (Cell(energy, state, geometry) for energy in energies_for(state))
    return tuple(cell for cell in found if is_supported(dataclasses.replace(cell, scheme="explicit")))


@functools.cache
def supported(state: str, geometry: str) -> tuple[Cell, ...]:
    """Every supported cell at a state in a geometry."""
    found = (Cell(energy, state, geometry, scheme) for energy in energies_for(state) for scheme in schemes())
    return tuple(cell for cell in found if is_supported(cell))


def modules_in(value: Any) -> Iterator[type]:
    """The classes of all modules inside a value, however deep."""
    if isinstance(value, eqx.Module):
        yield type(value)
        for field in dataclasses.fields(value):  # type: ignore[arg-type]
            yield from modules_in(getattr(value, field.name))
    elif isinstance(value, dict):
        for part in value.values():
            yield from modules_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from modules_in(part)


def a_random_cotangent(like: tw.Cotangent, seed: int) -> tw.Cotangent:
    """A cotangent with the weights of another one and random values."""
    leaves, tree = jax.tree.flatten(like.regular)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    random = [jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return eqx.tree_at(lambda c: c.regular, like, jax.tree.unflatten(tree, random))


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array of real numbers."""
    return eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
