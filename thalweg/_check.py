"""Everything that can be found wrong before anything is compiled."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._shapes import shapes_of
from thalweg._types import PRNGKey, State
from thalweg.energies import (
    AbstractEnergy,
    Function,
    HalfDeviance,
    NegativeLogLikelihood,
    as_energy,
    check_integrands,
    check_on_grid,
    decompose,
    with_walls,
)
from thalweg.geometries import AbstractGeometry
from thalweg.geometries.wasserstein import check_mobility, is_matrix
from thalweg.likelihoods import AbstractFamily
from thalweg.schemes import AbstractScheme
from thalweg.states import AbstractDensity, AbstractState, GridDensity, GridFunction, Parametric
from thalweg.targets import Target


def check_combination(energy: AbstractEnergy, state: State, geometry: AbstractGeometry, scheme: AbstractScheme) -> None:
    """Raise `UnsupportedCombination` or `ValueError` unless the four choices can be put together."""
    if not isinstance(geometry, AbstractGeometry):
        raise TypeError(f"`geometry` must be a geometry such as `tw.Euclidean()`; got {_named(geometry)}.")
    if not isinstance(scheme, AbstractScheme):
        raise TypeError(f"`scheme` must be a scheme such as `tw.Explicit(step_size=0.1)`; got {_named(scheme)}.")
    check_state(state)
    geometry.at(state)
    _check_mobility(geometry, state)
    _check_proximable(energy, state, scheme)
    check_energy(energy, state)
    _check_ceiling(energy, scheme)
    scheme.check(energy, geometry, state)
    walled = with_walls(energy, state)
    if walled is not state:
        check_combination(energy, walled, geometry, scheme)


def _check_mobility(geometry: AbstractGeometry, state: State) -> None:
    mobility = getattr(geometry, "mobility", None)
    if mobility is None or not isinstance(state, GridDensity) or _tree.is_traced(state.values):
        return
    if not is_matrix(mobility, state):
        check_mobility(mobility, state)


def check_energy(energy: AbstractEnergy, state: State) -> None:
    """Raise unless the energy has a value at the state, whatever the scheme."""
    _check_outputs(energy, state)
    _check_energy_fits(energy, state)


def check_key(energy: AbstractEnergy, scheme: AbstractScheme, key: PRNGKey | None) -> None:
    """Raise `ValueError` if one of the choices draws random numbers and there is no key."""
    for choice in (scheme, energy):
        if choice.needs_key and key is None:
            named = "The energy" if choice is energy else f"`{_named(choice)}`"
            raise ValueError(f"{named} draws random numbers and needs a `key`: pass `key=jax.random.key(0)`.")


def why_unsupported(energy: Any, state: State, *, geometry: AbstractGeometry, scheme: AbstractScheme) -> str | None:
    """Why these four choices cannot be put together, or `None` if they can. Nothing is compiled.

    **Arguments:** as for [`thalweg.flow`][].
    """
    try:
        check_combination(as_energy(energy), state, geometry, scheme)
    except (UnsupportedCombination, ValueError) as error:
        return str(error)
    return None


def check_state(state: State) -> None:
    """Raise unless the state is a pytree of finite real floating arrays, or one of thalweg's states."""
    leaves = jax.tree.leaves(state)
    if not isinstance(state, AbstractState):
        if not leaves:
            raise ValueError("`initial_state` is empty; it must hold at least one floating-point array.")
        for leaf in leaves:
            dtype = getattr(leaf, "dtype", None)
            if dtype is None:
                raise ValueError(
                    f"`initial_state` must be made of arrays; got {_named(leaf)}. Use `jnp.array(...)` for a vector."
                )
            if not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(
                    f"`initial_state` must hold real floating-point numbers; got an array of dtype {dtype}. "
                    "Convert it, e.g. `x0.astype(float)`."
                )
    for leaf in leaves:
        if eqx.is_inexact_array(leaf) and not _tree.is_traced(leaf):
            if not np.all(np.isfinite(np.asarray(leaf))):
                raise ValueError("`initial_state` must be finite; it holds NaN or infinity.")


def _check_energy_fits(energy: AbstractEnergy, state: State) -> None:
    _check_dimensions(energy, state)
    structure = decompose(energy)
    symbolic = structure.temperature is not None and not getattr(state, "knows_density", True)
    # The entropy of particles without a density model is played by noise or refused by the scheme; the rest must
    # have a value.
    part = structure.without_entropy() if symbolic else energy
    try:
        out = shapes_of(_value, part, state)
    except UnsupportedCombination:
        raise
    except ValueError as error:
        raise _none_returned(part, state, error) from error
    except AttributeError as error:
        raise UnsupportedCombination(
            f"`{_named(energy)}` cannot be evaluated at {_named(state)}: {_plain(error)}.\n"
            "Energies of densities need a density state such as `tw.GridDensity`, `tw.Particles` or `tw.Gaussian`; "
            "vectors need a function of the vector."
        ) from error
    except Exception as error:
        raise ValueError(
            f"`energy` failed when it was tried on the shapes of `initial_state`:\n  {first_line(error)}\n"
            "It must accept the state and be written with jax.numpy."
        ) from error
    _check_scalar(out)
    if isinstance(state, GridDensity) and not _tree.is_traced(state.values):
        check_on_grid(energy, state)
    if isinstance(state, GridFunction) and not _tree.is_traced(state.values):
        check_integrands(energy, state)


def _check_scalar(out: Any) -> None:
    if out.shape == () and jnp.issubdtype(out.dtype, jnp.floating):
        return
    if out.shape != ():
        advice = "A potential or log density takes one point and returns a scalar: end it with `jnp.sum(...)`."
    elif jnp.issubdtype(out.dtype, jnp.complexfloating):
        advice = "Take its real part, e.g. `jnp.real(...)`, or use `jnp.abs(z) ** 2` for squares."
    else:
        advice = "Whole numbers have no slope: use floating-point numbers throughout, without `round`, `>` or `argmax`."
    raise ValueError(
        f"`energy` must return one real number (shape ()); got shape {out.shape} and dtype {out.dtype}.\n{advice}"
    )


def _none_returned(energy: AbstractEnergy, state: State, error: ValueError) -> ValueError:
    """What to say where the user's function returns `None`, else the error itself."""
    parts = jax.tree.leaves(energy, is_leaf=lambda part: isinstance(part, Function))
    try:
        nothing = any(isinstance(part, Function) and eqx.filter_eval_shape(part.fn, state) is None for part in parts)
    except Exception:  # it fails before it returns, which is said instead
        return error
    return (
        ValueError("`energy` must return one real number; it returned None. Has it a `return`?") if nothing else error
    )


def first_line(error: Exception) -> str:
    """An error of somebody else's in one line."""
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {text}"


def check_fit(model: Any, inputs: Any, outputs: Any, params: Any, likelihood: Any) -> None:
    """Raise unless the model returns parameters of the likelihood, and the observations fit both."""
    if not isinstance(likelihood, AbstractFamily):
        given = repr(likelihood) if isinstance(likelihood, str) else _named(likelihood)
        raise TypeError(
            f"`likelihood` must be a family such as `tw.likelihoods.Poisson()`; got {given}.\n"
            "`None` is a normal distribution of standard deviation 1."
        )
    if not callable(model):
        raise TypeError(f"`model` must be a function `model(params, inputs)`; got {_named(model)}.")
    try:
        predicted = eqx.filter_eval_shape(model, params, inputs)
    except Exception as error:
        raise ValueError(
            f"`model(params, inputs)` failed when it was tried on shapes:\n  {first_line(error)}\n"
            f"params: {_shapes(params)}, inputs: {_shapes(inputs)}.\n"
            "It must take the parameters first, then the inputs, whose shapes must fit, and be written with jax.numpy."
        ) from error
    if predicted is None:
        raise ValueError("`model(params, inputs)` must return its outputs; it returned None. Has it a `return`?")
    if likelihood.check is not None:
        likelihood.check(predicted, outputs)


def _shapes(tree: Any) -> str:
    text = eqx.tree_pformat(tree, width=10_000).replace("\n", " ")
    return text if len(text) <= 120 else f"{text[:117]}..."


def _value(energy: AbstractEnergy, state: State) -> Any:
    return energy(state)


def _check_proximable(energy: AbstractEnergy, state: State, scheme: AbstractScheme) -> None:
    structure = decompose(energy)
    if not structure.proximable:
        return
    if not scheme.takes_proximable and not isinstance(state, AbstractState):
        names = " and ".join(f"`{_named(term.energy)}`" for term in structure.proximable)
        raise UnsupportedCombination(
            f"{names} has corners or walls, which `{_named(scheme)}` would differentiate wrongly.\n"
            "Use `scheme=tw.ProximalNewton()` for the minimum, or `scheme=tw.ForwardBackward(step_size)` for the flow."
        )
    if isinstance(state, AbstractState):
        # They refuse it, under the names that they were given; the joint energy has one of its own.
        for term in structure.proximable:
            term.energy(state)
    structure.joint_proximable(state).check(state)


def _check_ceiling(energy: AbstractEnergy, scheme: AbstractScheme) -> None:
    if decompose(energy).ceiling is not None and not scheme.takes_ceiling:
        raise UnsupportedCombination(
            f"`Congestion` is a wall at a density and has no slope, so `{_named(scheme)}` cannot take it.\n"
            "Use `scheme=tw.Proximal(step_size)`, whose steps are minimised under the ceiling, or the smooth\n"
            "`tw.PorousMedium(exponent)` with a large exponent."
        )


def _check_outputs(energy: AbstractEnergy, state: State) -> None:
    if not isinstance(state, Parametric) or state.family.check is None:
        return
    explains = (NegativeLogLikelihood, HalfDeviance)
    for part in jax.tree.leaves(energy, is_leaf=lambda part: isinstance(part, explains)):
        if isinstance(part, explains):
            state.family.check(state.params, part.outputs)


def _plain(error: Exception) -> str:
    # The user's array, not JAX's stand-in for it.
    return str(error).replace("DynamicJaxprTracer", "an array")


def _check_dimensions(energy: AbstractEnergy, state: State) -> None:
    if not isinstance(state, AbstractDensity):
        return
    parts = jax.tree.leaves(energy, is_leaf=lambda part: isinstance(part, Target))
    wrong = [part.dim for part in parts if isinstance(part, Target) and part.dim != state.dim]
    if wrong:
        raise ValueError(
            f"The target lives in {wrong[0]} dimensions and `initial_state` in {state.dim}; they must agree. "
            "(`dim` of `tw.Target` is the length of one point.)"
        )


def _named(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} (make one: `{value.__name__}(...)`)"
    return "a vector" if isinstance(value, jax.Array) else type(value).__name__
