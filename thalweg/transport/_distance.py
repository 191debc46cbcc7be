r"""The Wasserstein distance between two densities: one call, one result with everything that is known about it.

$$W_2^2(a, b) = \inf_\gamma \int |x - y|^2\,\mathrm d\gamma(x, y) = \sup_{\varphi(x) + \psi(y) \le |x - y|^2}
\int\varphi\,\mathrm da + \int\psi\,\mathrm db.$$

A representation registers itself on `transport_between`; nothing else changes. Each of them computes the two sides
by themselves, so that their difference says how good the answer is.
"""

import abc
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Scalar, ScalarLike, State
from thalweg.states import GridDensity, Particles
from thalweg.states._base import is_concrete, is_density

# Masses that differ by more than sums of float32 lose are different.
_MASS_TOLERANCE = 1e-5
# What a `GridDensity` may be off by.
_UNIT_TOLERANCE = 1e-4


class Certificate(eqx.Module):
    r"""How good a distance is: `primal` is the cost of the coupling that was found, `dual` what the potentials prove.

    `gap` is their difference; `statement` says what it certifies. (In the plane `primal` is the cost of a plan between
    cells, which is not kept; the coupling that is given is that of a map.) `least`: in the plane $W_2^2$ of the
    densities, constant in cells, is rigorously between this and `primal`; elsewhere `None`.
    """

    primal: Scalar
    dual: Scalar
    statement: str = eqx.field(static=True)
    least: Scalar | None = None

    def __repr__(self) -> str:
        bounds = {"least": self.least, "dual": self.dual, "primal": self.primal}
        known = {name: value for name, value in bounds.items() if value is not None}
        if not all(is_concrete(value) and jnp.ndim(value) == 0 for value in known.values()):
            return f"Certificate({self.statement})"
        numbers = ", ".join(f"{name} {float(value):.6g}" for name, value in known.items())
        return f"Certificate({numbers}; {self.statement})"

    @property
    def gap(self) -> Scalar:
        """Primal less dual."""
        return self.primal - self.dual


class AbstractCoupling(eqx.Module):
    """A joint distribution of a start and an end with the two densities as its marginals."""

    @abc.abstractmethod
    def expect(self, function: Callable[..., Any]) -> Scalar:
        r"""$\int f(x, y)\,\mathrm d\gamma$ for a function of two points."""


class SparseCoupling(AbstractCoupling):
    r"""A coupling of particles: $\gamma = \sum_k m_k\,\delta_{(x_{i_k}, y_{j_k})}$.

    `rows` and `columns` are the particles $i_k$ and $j_k$, `masses` the $m_k$, all of shape `(num_pairs,)`; `sources`
    and `images` are the positions of the two ends, shape `(num_pairs, dim)`.
    """

    rows: Array
    columns: Array
    masses: Array
    sources: Array
    images: Array

    def expect(self, function: Callable[..., Any]) -> Scalar:
        r"""$\int f(x, y)\,\mathrm d\gamma$ for a function of two points."""
        return jnp.sum(self.masses * jax.vmap(function)(self.sources, self.images))


class MapCoupling(AbstractCoupling):
    r"""The coupling of a map, $\gamma = (\mathrm{Id}, T)_\# a$: all mass at $x$ goes to $T(x)$. Nothing is stored.

    `nodes` and `masses` are a quadrature rule for $a$, shapes `(num_nodes, dim)` and `(num_nodes,)`; `images` the
    images of the nodes. In the plane the images meet the second marginal only to the error of the cells, and worse
    where T jumps or stretches a cell over many; where that is much it may be the map of the end, $(T^{-1},
    \mathrm{Id})_\# b$, and the rule one for $b$ at the images. `certificate.statement` says how much is missed.
    """

    nodes: Array
    images: Array
    masses: Array

    def expect(self, function: Callable[..., Any]) -> Scalar:
        r"""$\int f(x, T(x))\,\mathrm da$ for a function of two points, by the rule."""
        return jnp.sum(self.masses * jax.vmap(function)(self.nodes, self.images))


class Transport(eqx.Module):
    r"""The optimal transport between two densities; what [`thalweg.wasserstein_distance`][] returns.

    - `distance_squared`, `distance`: $W_2^2$ and $W_2$;
    - `map`: a function of one point, $x \mapsto T(x)$, that carries `start` to `end`; for particles the images of the
      particles of `start`, shape `(num_particles, dim)` (where one is split, the mean of its images);
    - `coupling`: $\gamma$ of the definition; `coupling.expect(lambda x, y: …)` integrates against it;
    - `potentials`: $(\varphi, \psi)$ with $\varphi(x) + \psi(y) \le |x - y|^2$: cell averages on the line, values at
      cell centres in the plane and in space and at particles, functions of a point for Gaussians. They are the
      derivatives of $W_2^2$ by the two densities;
    - `certificate`: the duality gap and what it certifies;
    - `geodesic`: `geodesic(t)` is the displacement interpolation $((1-t)\,\mathrm{Id} + tT)_\# a$, a state of the same
      kind; `geodesic.action()` is its Benamou–Brenier action $\int_0^1\!\int |v|^2\,\mathrm dq_t\,\mathrm dt$, equal
      to $W_2^2$ (in the plane to the error of the cells);
    - `method`: how it was computed.
    """

    start: State
    end: State
    distance_squared: Scalar
    map: Any
    coupling: AbstractCoupling
    potentials: tuple[Any, Any]
    certificate: Certificate
    geodesic: Any
    method: str = eqx.field(static=True)

    def __repr__(self) -> str:
        kinds = f"{type(self.start).__name__} to {type(self.end).__name__}"
        if not is_concrete(self.distance_squared) or jnp.ndim(self.distance_squared) != 0:
            return f"Transport({kinds}; {self.method})"
        numbers = [f"{float(x):.6g}" for x in (self.distance, self.distance_squared)]
        return f"Transport({kinds}: W₂ = {numbers[0]}, W₂² = {numbers[1]}; {self.method})"

    @property
    def distance(self) -> Scalar:
        r"""$W_2$. Its derivative is zero where the distance is: there it has none."""
        apart = self.distance_squared > 0
        return jnp.where(apart, jnp.sqrt(jnp.where(apart, self.distance_squared, 1)), 0)


def wasserstein_distance(a: State, b: State, *, solver: Any = None) -> Transport:
    r"""The 2-Wasserstein distance between two densities, with its map, coupling, potentials and geodesic.

    $$W_2^2(a, b) = \inf_\gamma \int |x - y|^2\,\mathrm d\gamma(x, y).$$

    - grid densities on the line (walls or periodic): exact for densities constant on cells; the two grids may differ;
    - [`thalweg.Gaussian`][]: the closed form;
    - [`thalweg.Particles`][]: on the line by sorting; equal numbers of equal weights by an exact assignment; else by
      an exact linear program; too many for these need `solver=tw.Sinkhorn(epsilon)`, which reports its bias;
    - grid densities in the plane, of at least 16 cells an axis: by the dual between the cells, for densities constant
      in cells, with the displacement interpolation as `geodesic`. Their $W_2^2$ lies between `certificate.least` and
      `certificate.primal` rigorously, that of the masses at the cell centres between `certificate.dual` and `primal`.
      The value is right to 0.1 Σh² where T neither jumps nor stretches more than about five times; else it may be off
      by 0.5 Σh², by more than that for a block of a cell or two, and `certificate.statement` calls it doubtful. The
      coupling is that of a map, of four points a cell; where T jumps its cost is off by some per cent;
    - in space, on fewer cells and with `solver=tw.Sinkhorn(epsilon)`: `distance_squared` is the middle of such a
      bracket, wrong by at most half of `certificate.gap` for the masses at the centres; without a geodesic;
    - on grids of two and three dimensions equal densities are at distance zero, and the way is straight: it goes
      through the obstacles of a mask. See `docs/transport.md`.

    `distance_squared` can be differentiated by the values, positions, weights and moments. What runs on the host
    (assignment, linear program) cannot be inside `jax.jit`; inside `jax.grad` it can.

    **Arguments:** `a`, `b`: two states of one kind and dimension, of mass one (inside `jax.jit`, where masses cannot be
    looked at, they count as normalised); `solver`: `None` chooses.

    **Returns:** a [`thalweg.Transport`][].

    **Raises:** `UnsupportedCombination` for two kinds of states, or one without a distance; `ValueError` for different
    dimensions, masses or spaces, a mass that is not one, and NaN.

    **Source:** Villani, *Topics in Optimal Transportation* (2003), theorems 1.3 and 2.12; Benamou, Brenier (2000);
    Su (2023), the section on the Wasserstein distance.
    """
    if type(a) is not type(b) or not is_density(a):
        raise UnsupportedCombination(
            "`wasserstein_distance(a, b)` needs two densities of one kind; "
            f"got `{type(a).__name__}` and `{type(b).__name__}`.\n"
            "Draw particles from both, `tw.Particles.sample(density, n, key=...)`, or put both on one grid."
        )
    if a.dim != b.dim:
        raise ValueError(f"Both densities must live in one space; got {a.dim} and {b.dim} dimensions.")
    _check_mass(a, b)
    return transport_between(a, b, solver)


@functools.singledispatch
def transport_between(a: State, b: State, solver: Any) -> Transport:
    """The transport between two densities of the class of `a`, already checked; open for registration."""
    raise UnsupportedCombination(
        f"`wasserstein_distance` knows no transport between two `{type(a).__name__}`.\n"
        "Draw particles from both, `tw.Particles.sample(density, n, key=...)`, or use `tw.GridDensity`."
    )


def envelope(distance_squared: Scalar, *sides: tuple[Array, Array]) -> Scalar:
    r"""The same number with $\sum_i \varphi_i\,\mathrm d m_i$ as its derivative, for pairs of potentials and masses.

    By the envelope theorem that is the derivative of the maximum of the dual; the potentials themselves are constants.
    """
    value = jax.lax.stop_gradient(distance_squared)
    for potential, masses in sides:
        value = value + jnp.sum(jax.lax.stop_gradient(potential) * (masses - jax.lax.stop_gradient(masses)))
    return value


def time_average(rate: Callable[[Array], Array], dtype: Any, num_nodes: int = 8) -> Scalar:
    r"""$\int_0^1 r(t)\,\mathrm dt$ by Gauss's rule, for the action of a geodesic."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    times, weights = jnp.asarray(0.5 * (nodes + 1), dtype), jnp.asarray(0.5 * weights, dtype)
    return jnp.sum(weights * jnp.stack([rate(time) for time in times]))


def as_time(time: ScalarLike, dtype: Any) -> Scalar:
    """A time of a geodesic, between 0 and 1 where it can be looked at."""
    time = jnp.asarray(time, dtype)
    if is_concrete(time) and not 0 <= float(time) <= 1:
        raise ValueError(f"A geodesic is defined for times between 0 and 1; got {float(time):.6g}.")
    return time


def _check_mass(a: State, b: State) -> None:
    """Two finite, non-negative measures of one and the same positive mass."""
    masses = []
    for name, state in (("a", a), ("b", b)):
        if isinstance(state, GridDensity):
            content, volume = state.values, state.grid.cell_volume
        elif isinstance(state, Particles):
            content, volume = state.weights, 1.0
        else:
            continue
        leaves = [leaf for leaf in jax.tree.leaves(state) if eqx.is_inexact_array(leaf)]
        if not is_concrete(content, *leaves):
            return
        if not all(np.all(np.isfinite(np.asarray(leaf))) for leaf in leaves):
            raise ValueError(f"`wasserstein_distance` needs finite numbers; `{name}` has NaN or infinity.")
        if np.any(np.asarray(content) < 0):
            raise ValueError(f"`wasserstein_distance` needs densities that are not negative; `{name}` is somewhere.")
        masses.append(float(np.sum(np.asarray(content, np.float64)) * volume))
    if masses and min(masses) <= 0:
        raise ValueError(f"`wasserstein_distance` needs densities with mass; got masses {masses[0]} and {masses[1]}.")
    if masses and abs(masses[0] - masses[1]) > _MASS_TOLERANCE * max(masses):
        raise ValueError(
            f"Only equal masses can be transported into each other; got {masses[0]:.8g} and {masses[1]:.8g}.\n"
            "Normalise both: `tw.GridDensity.normalised(values, grid)`."
        )
    if masses and abs(masses[0] - 1) > _UNIT_TOLERANCE:
        raise ValueError(
            f"`wasserstein_distance` takes densities of mass one; both have mass {masses[0]:.8g}.\n"
            "Normalise both, `tw.GridDensity.normalised(state.values, grid)`; W₂² between measures of mass m is m "
            "times that."
        )
