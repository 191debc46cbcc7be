"""What a problem is: something to minimise, where to start, and what is known exactly about the answer.

Four kinds, by the space in which the flow moves. A problem is a description, not a state: plain data and functions of
one point, from which `energy()` and `initial_state()` build the objects of the library. Whatever is not known in
closed form is `None`.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from thalweg import energies, likelihoods, states, targets
from thalweg._types import PointFunction, PRNGKey, Scalar
from thalweg.problems._quadrature import cell_averages


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AbstractProblem(abc.ABC):
    """A named problem with its source.

    **Attributes:** `name`: as in [`thalweg.problems.get`][]; `source`: where the problem and its exact answer come
    from.
    """

    name: str
    source: str

    @abc.abstractmethod
    def energy(self) -> Any:
        """What is minimised, as `tw.flow` takes it."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VectorProblem(AbstractProblem):
    r"""Minimise a function of a vector.

    **Attributes:** `fn`: $f$, one point to a scalar; `initial`: the customary start; `minimiser` and `minimum`:
    $x^\ast$ and $f(x^\ast)$; `hessian`: the constant $\nabla^2 f$ of a quadratic, else `None`; and from `initial`,
    where known, `exact(time)`: the gradient flow $\dot x = -\nabla f$; `exact_explicit(step_size, num_steps)`:
    gradient descent; `exact_proximal(step_size, num_steps)`: proximal steps.
    """

    fn: PointFunction
    initial: Float[Array, " dim"]
    minimiser: Float[Array, " dim"]
    minimum: float
    hessian: Float[Array, "dim dim"] | None = None
    exact: Callable[..., Any] | None = None
    exact_explicit: Callable[..., Any] | None = None
    exact_proximal: Callable[..., Any] | None = None

    @property
    def dim(self) -> int:
        """The dimension of the space."""
        return self.initial.shape[0]

    def energy(self) -> PointFunction:
        """The function itself: a plain vector needs no named energy."""
        return self.fn

    def initial_state(self) -> Float[Array, " dim"]:
        """The customary start."""
        return self.initial


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DensityProblem(AbstractProblem):
    r"""A gradient flow of densities in the Wasserstein geometry,

    $$\partial_t q = \nabla\cdot(q\,\nabla(V + W * q)) + T\,\Delta q + \gamma\,\Delta q^m,$$

    the flow of $F(q) = \int V\,\mathrm dq + \tfrac12\iint W(x-y)\,\mathrm dq\,\mathrm dq + T\int q\log q +
    \tfrac{\gamma}{m-1}\int q^m$.

    **Attributes:** `potential` $V$, `interaction_kernel` $W$ (of a displacement) and `porous_exponent` $m$: `None` if
    the term is absent; `temperature` $T$ and `porous_coefficient` $\gamma$, energies; `initial_density`; `exact(time,
    x)`: $q_t(x)$ from that start; `exact_cumulative(time, x)`: in one dimension, the mass between `lower` and $x$ up
    to a constant; `exact_mean(time)` and `exact_covariance(time)`; `initial_mean` and `initial_covariance` of a
    Gaussian start; `stationary_log_density`: normalised, $-\infty$ where the density is zero; `minimum`: $\inf F$;
    `lower`, `upper`: a box that holds the solution up to `final_time` (to rounding where the space is unbounded);
    `periodic`: whether its sides are joined or are walls; `relaxation_rate`: the slowest exponential rate to
    equilibrium.
    """

    dim: int
    potential: PointFunction | None = None
    interaction_kernel: PointFunction | None = None
    temperature: float = 0.0
    porous_exponent: float | None = None
    porous_coefficient: float = 1.0
    initial_density: PointFunction
    initial_mean: Float[Array, " dim"] | None = None
    initial_covariance: Float[Array, "dim dim"] | None = None
    exact: Callable[..., Any] | None = None
    exact_cumulative: Callable[..., Any] | None = None
    exact_mean: Callable[..., Any] | None = None
    exact_covariance: Callable[..., Any] | None = None
    stationary_log_density: PointFunction | None = None
    minimum: float | None = None
    relaxation_rate: float | None = None
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    periodic: bool = False
    final_time: float

    def energy(self) -> Any:
        """The sum of the terms that are present."""
        terms = []
        if self.potential is not None:
            terms.append(energies.PotentialEnergy(self.potential))
        if self.interaction_kernel is not None:
            terms.append(energies.InteractionEnergy(self.interaction_kernel))
        if self.temperature > 0:
            terms.append(self.temperature * energies.Entropy())
        if self.porous_exponent is not None:
            terms.append(self.porous_coefficient * energies.PorousMedium(self.porous_exponent))
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def grid(self, shape: int | tuple[int, ...]) -> states.Grid:
        """The problem's box cut into cells, with its boundary condition; one number of cells serves every axis."""
        shape = (shape,) * self.dim if isinstance(shape, int) else shape
        return states.Grid(self.lower, self.upper, shape, states.Periodic() if self.periodic else states.NoFlux())

    def initial_state(self, shape: int | tuple[int, ...]) -> states.GridDensity:
        """The initial density on `grid(shape)`, as cell averages."""
        grid = self.grid(shape)
        values = cell_averages(self.initial_density, self.lower, self.upper, grid.shape)
        return states.GridDensity.normalised(values, grid)

    def initial_gaussian(self) -> states.Gaussian:
        """The initial density as a Gaussian state, where it is one."""
        if self.initial_mean is None or self.initial_covariance is None:
            raise ValueError(
                f"`{self.name}` does not start from a Gaussian; use `initial_state(shape)`, a grid density."
            )
        return states.Gaussian(self.initial_mean, self.initial_covariance)

    def initial_particles(self, num_particles: int, *, key: PRNGKey) -> states.Particles:
        """Independent particles from a Gaussian initial density."""
        return states.Particles.sample(self.initial_gaussian(), num_particles, key=key)

    def cell_averages(self, time: Any, shape: int | tuple[int, ...]) -> Float[Array, "..."]:
        """The exact solution at `time`, averaged over each cell of `grid(shape)`: what a finite-volume solution
        approximates."""
        if self.exact is None:
            raise ValueError(
                f"`{self.name}` has no closed form in time; its limit is `stationary_cell_averages(shape)`."
            )
        grid = self.grid(shape)
        exact, cumulative = self.exact, self.exact_cumulative
        if cumulative is None:
            return cell_averages(lambda x: exact(time, x), self.lower, self.upper, grid.shape)
        edges = jnp.linspace(self.lower[0], self.upper[0], grid.shape[0] + 1)
        masses = jax.jit(lambda points: jnp.diff(jax.vmap(lambda x: cumulative(time, x))(points)))
        return masses(edges[:, None]) / grid.cell_volume

    def stationary_cell_averages(self, shape: int | tuple[int, ...]) -> Float[Array, "..."]:
        """The stationary density averaged over each cell of `grid(shape)`."""
        log_density = self.stationary_log_density
        if log_density is None:
            raise ValueError(f"`{self.name}` has no stationary density.")
        return cell_averages(lambda x: jnp.exp(log_density(x)), self.lower, self.upper, self.grid(shape).shape)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Reference mean and standard deviation of a named quantity, entry by entry.

    **Attributes:** `mean`, `sd`: arrays of the quantity's shape; `num_draws`: how many independent draws they were
    estimated from (`None`: exact), so that the standard error of `mean` is `sd / sqrt(num_draws)`.
    """

    mean: Float[Array, "..."]
    sd: Float[Array, "..."]
    num_draws: int | None = None

    @property
    def standard_error(self) -> Float[Array, "..."]:
        """The standard error of the reference mean itself; zero where it is exact."""
        if self.num_draws is None:
            return jnp.zeros_like(self.sd)
        return self.sd / jnp.asarray(float(self.num_draws), self.sd.dtype) ** 0.5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TargetProblem(AbstractProblem):
    r"""Reach a distribution that is known by its log density on the whole of $\mathbb R^{\mathrm{dim}}$.

    **Attributes:** `log_density`: $\log p$ with the constant that makes $\int p = e^{\text{log\_evidence}}$;
    `log_evidence`: 0 for a normalised density, `None` if unknown; `constrain(x)`: the named quantities of interest at
    one point, a dictionary of arrays; `reference`: their [`Moments`][]; `sample(key, num_samples)`: exact draws;
    `initial_mean`, `initial_sd`: a customary Gaussian start, the same in each coordinate.
    """

    dim: int
    log_density: PointFunction
    log_evidence: float | None = None
    constrain: Callable[..., Any] = lambda x: {"x": x}
    reference: Mapping[str, Moments]
    sample: Callable[..., Any] | None = None
    initial_mean: float = 0.0
    initial_sd: float = 1.0

    def target(self) -> targets.Target:
        """The distribution to reach."""
        return targets.Target(self.log_density, self.dim)

    def energy(self) -> Any:
        r"""$\mathrm{KL}(q\,\|\,p)$."""
        return energies.KL(self.target())

    def initial_gaussian(self) -> states.Gaussian:
        """The customary Gaussian start."""
        return states.Gaussian(jnp.full((self.dim,), self.initial_mean), self.initial_sd**2 * jnp.eye(self.dim))

    def initial_state(self, num_particles: int, *, key: PRNGKey) -> states.Particles:
        """Independent particles from the customary Gaussian start."""
        return states.Particles.sample(self.initial_gaussian(), num_particles, key=key)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RegressionProblem(AbstractProblem):
    r"""Fit $y_n \approx m(\theta, x_n)$ by least squares.

    **Attributes:** `model(params, inputs)`: the outputs, shape `(num_observations,)`; `inputs`: shape
    `(num_observations,)`, or `(num_observations, 2)` for two predictors; `outputs`; `starts`: one start a row, the
    first far from the answer; `certified_params`, `certified_sd` (standard deviations of the estimates) and
    `certified_rss` (residual sum of squares): to 11 digits.
    """

    model: Callable[..., Any]
    inputs: Float[Array, "num_observations ..."]
    outputs: Float[Array, " num_observations"]
    starts: Float[Array, "num_starts num_params"]
    certified_params: Float[Array, " num_params"]
    certified_sd: Float[Array, " num_params"]
    certified_rss: float

    def residual_sum_of_squares(self, params: Float[Array, " num_params"]) -> Scalar:
        r"""$\sum_n (y_n - m(\theta, x_n))^2$."""
        return jnp.sum((self.outputs - self.model(params, self.inputs)) ** 2)

    def energy(self) -> PointFunction:
        r"""$\tfrac12\sum_n (y_n - m(\theta, x_n))^2$, the negative log likelihood with unit variance, up to a
        constant."""
        return lambda params: 0.5 * self.residual_sum_of_squares(params)

    def initial_state(self, start: int = 0) -> Float[Array, " num_params"]:
        """The parameters of one of the published starts, counted from zero."""
        return self.starts[start]

    def statistical_energy(self) -> Any:
        """The negative log likelihood of the outputs, the energy of a natural gradient from `initial_parametric`."""
        return energies.NegativeLogLikelihood(self.outputs)

    def initial_parametric(self, start: int = 0, *, scale: float = 1.0) -> states.Parametric:
        r"""One of the published starts as a point of the statistical model $y_n \sim N(m(\theta, x_n),
        \text{scale}^2)$."""
        family = likelihoods.Regression(self.model, self.inputs, likelihoods.Normal(scale))
        return states.Parametric(self.starts[start], family)

    def log_relative_error(self, params: Float[Array, " num_params"]) -> Scalar:
        r"""$-\log_{10}\max_i |\theta_i - c_i|/|c_i|$: the number of correct digits, at most the 11 that are
        certified."""
        error = jnp.max(jnp.abs(params - self.certified_params) / jnp.abs(self.certified_params))
        return -jnp.log10(jnp.maximum(error, 1e-11))
