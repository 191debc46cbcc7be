"""The whole path of a flow, with its energies and its certificate."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from thalweg import _tree
from thalweg._errors import Unavailable
from thalweg._result import name_of, sentence
from thalweg._saves import Saves
from thalweg._types import Array, Int, PyTree, Scalar, State
from thalweg.states import moving


class FlowState(eqx.Module):
    """Where a flow stands: enough to go on with, bit for bit.

    `state` is the point itself, `memory` what the scheme remembers, `time` and `num_steps` how far it has come.
    """

    state: State
    memory: PyTree
    time: Scalar
    time_rest: Scalar
    num_steps: Int[Array, ""]
    distance_squared: Scalar
    dissipated: Scalar
    stats: dict[str, Array]


class EnergyBalance(NamedTuple):
    r"""Whether the energy that was lost is the energy that was dissipated: $F(x_0) - F(x_T)$ against $\int_0^T
    \|\xi\|_*^2\,\mathrm dt$.

    `decrease`, `dissipated`, `relative_error` = |decrease − dissipated| / max(decrease, dissipated). The integral is
    taken step by step by the scheme, whatever is saved: `Continuous` integrates it with the flow, so the two agree to
    its accuracy; for the schemes of first order the difference is of the order of the step size.
    """

    decrease: float
    dissipated: float
    relative_error: float


class Path(eqx.Module):
    """What [`thalweg.flow`][] returns.

    - `times`: shape `(num_saves,)`; the start is included. For `Constrained` it is arc length.
    - `states`: the state, what moves of it with a leading axis of saves.
    - `energies`, `dissipation_rates`: shape `(num_saves,)`; where a representation has none, asking raises with the
      reason, which `unavailable` also lists.
    - `distances_squared`: shape `(num_saves,)`, the squared length of the step that led to each save (0 for the start).
    - `measurements`: what `measure` returned, and what the scheme reports, each with a leading axis of saves.
    - `result`: a member of `tw.RESULTS`; `final`: the last [`thalweg.FlowState`][]; `final.state` is the last state.
    - `stats`: what was chosen automatically, counts and seconds.
    """

    saves: Saves
    result: Any
    final: FlowState
    extras: dict[str, Any] = eqx.field(default_factory=dict)
    unavailable_items: tuple[tuple[str, str], ...] = eqx.field(static=True, default=())
    stats_items: tuple[tuple[str, Any], ...] = eqx.field(static=True, default=())

    @property
    def times(self) -> Array:
        """The time of each save, shape `(num_saves,)`; for `Constrained` it is arc length."""
        return self.saves.times

    @property
    def states(self) -> State:
        """The state, what moves of it with a leading axis of saves."""
        return self.saves.states

    @property
    def records(self) -> dict[str, Array]:
        """Energies, dissipation rates and distances by name, with a leading axis of saves."""
        return self.saves.records

    @property
    def measurements(self) -> dict[str, Any]:
        """What `measure` returned and what the scheme reports, with a leading axis of saves."""
        return self.saves.measurements

    @property
    def energies(self) -> Array:
        """The energy at each save, shape `(num_saves,)`."""
        return self._record("energies")

    @property
    def dissipation_rates(self) -> Array:
        r"""$-\mathrm dF/\mathrm dt = \|\xi\|_*^2$ at each save, shape `(num_saves,)`."""
        return self._record("dissipation_rates")

    @property
    def distances_squared(self) -> Array:
        """The squared distance of the step that led to each save, shape `(num_saves,)`."""
        return self._record("distances_squared")

    @property
    def unavailable(self) -> dict[str, str]:
        """What could not be measured in this representation, and why."""
        return dict(self.unavailable_items)

    @property
    def stats(self) -> dict[str, Any]:
        """What was chosen automatically, counts and seconds."""
        return dict(self.stats_items)

    @property
    def certificate(self) -> Any:
        """The certificate of the samples, where the scheme makes one."""
        return self._extra("certificate")

    @property
    def transport(self) -> Any:
        """The map that carried the samples, where the scheme keeps one."""
        return self._extra("transport")

    def _extra(self, name: str) -> Any:
        if name not in self.extras:
            raise Unavailable(f"This path has no {name}: the scheme that made it does not keep one.")
        return self.extras[name]

    def _record(self, name: str) -> Array:
        if name not in self.records:
            raise Unavailable(f"`path.{name}` has no value here: {self.unavailable.get(name, 'it was not recorded')}.")
        return self.records[name]

    def __len__(self) -> int:
        return int(self.times.shape[0])

    def __repr__(self) -> str:
        if self.times.ndim != 1 or _tree.is_traced(self.times):
            return f"Path(times of shape {self.times.shape})"
        parts = [f"{len(self)} saves", f"{int(self.final.num_steps)} steps"]
        if "times" not in self.stats:
            name = "arc length" if "parameter" in self.stats else "time"
            parts.append(f"{name} {float(self.times[-1]):.4g}")
        if "energies" in self.records:
            energies = np.asarray(self.energies)
            parts.append(f"energy {energies[0]:.6g} → {energies[-1]:.6g}")
        return f"Path({'; '.join([*parts, name_of(self.result)])})"

    @property
    def message(self) -> str:
        """How the run ended, as a sentence."""
        return sentence(self.result)

    def state_at(self, index: int) -> State:
        """The state at one save; what does not move has no axis of saves and is shared."""
        return eqx.combine(jax.tree.map(lambda leaf: leaf[index], moving(self.states)), self.states)

    def energy_balance(self) -> EnergyBalance:
        """Compare the energy lost with the energy dissipated from the first save to the last."""
        energies = np.asarray(self.energies, np.float64)
        dissipated = float(self._record("dissipated")[-1] - self._record("dissipated")[0])
        decrease = float(energies[0] - energies[-1])
        largest = max(abs(decrease), abs(dissipated), float(np.finfo(np.float64).tiny))
        return EnergyBalance(decrease, dissipated, abs(decrease - dissipated) / largest)

    def plot(self, **options: Any) -> Any:
        """A figure of the energy, the dissipation and the states (needs matplotlib).

        `path.plot(energy=F)` also draws the contour lines of F under a vector of two entries, and the data of a fit:
        `path.plot(energy=tw.HalfDeviance(outputs))`. The options are those of [`thalweg.plotting.plot_path`][].
        """
        from thalweg.plotting import plot_path

        return plot_path(self, **options)

    def animate(self, **options: Any) -> Any:
        """A matplotlib animation of the states."""
        from thalweg.plotting import animate_path

        return animate_path(self, **options)

    def to_xarray(self) -> Any:
        """The path as an `xarray.Dataset` with labelled axes."""
        from thalweg.io import path_to_xarray

        return path_to_xarray(self)

    def save(self, file: Any) -> None:
        """Write the path to one file, without pickle, atomically; [`thalweg.load`][] reads it back."""
        from thalweg.io import save

        save(file, self)

    def but(self, **changes: Any) -> "Path":
        """The same path with some fields changed."""
        # Like `dataclasses.replace`, without looking at the saves: what has not been asked for stays uncut.
        path = object.__new__(Path)
        return _filled(path, {name: getattr(self, name) for name in _FIELDS} | changes)


_FIELDS = tuple(field.name for field in dataclasses.fields(Path))


def make_path(
    saves: Saves,
    result: Any,
    final: FlowState,
    extras: dict[str, Any],
    unavailable: dict[str, str],
    stats: dict[str, Any],
) -> Path:
    """A path, without the checks of `Path(...)`, which look at the saves."""
    path = object.__new__(Path)
    values = saves, result, final, extras, tuple(unavailable.items()), tuple(stats.items())
    return _filled(path, dict(zip(_FIELDS, values, strict=True)))


def _filled(path: Path, values: dict[str, Any]) -> Path:
    for name, value in values.items():
        object.__setattr__(path, name, value)
    return path


def concatenate(paths: list[Path]) -> Path:
    """One path out of consecutive pieces; the last piece gives the result and the final state."""
    if len(paths) == 1:
        return paths[0]
    # As a function: a method of a module looks at every array of it, and so would cut the saves.
    return Path.but(paths[-1], saves=Saves.later(lambda: _joined(paths)))


def _joined(paths: list[Path]) -> tuple[Any, ...]:
    def join(*leaves: Any) -> Any:
        # By NumPy: JAX would compile a concatenation anew for each number and length of pieces.
        return np.concatenate([np.asarray(leaf) for leaf in leaves]) if eqx.is_array(leaves[0]) else leaves[0]

    parts = [(p.times, moving(p.states), p.records, p.measurements) for p in paths]
    joined, rest = eqx.partition(jax.tree.map(join, *parts), lambda leaf: isinstance(leaf, np.ndarray))
    times, states, records, measurements = eqx.combine(jax.device_put(joined), rest)
    return times, eqx.combine(states, paths[-1].states), records, measurements
