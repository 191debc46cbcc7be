"""What works with what: every combination of representative objects, put to the library itself."""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import thalweg as tw
from thalweg._check import check_energy
from thalweg.energies import as_energy
from thalweg.likelihoods import Normal

YES, NO = "✓", "–"


@dataclasses.dataclass(frozen=True)
class Combination:
    """Four choices by name, and why they do not fit together (`None`: they do)."""

    state: str
    geometry: str
    energy: str
    scheme: str
    reason: str | None


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table: energies and geometries that support the same schemes at one state."""

    state: str
    geometries: tuple[str, ...]
    energies: tuple[str, ...]
    supported: tuple[bool, ...]


def representatives(dim: int = 1) -> dict[str, dict[str, Any]]:
    """One object of each public class, by role and by the name under which the table shows it.

    **Arguments:** `dim`: of the targets; it must be that of the state.
    """
    square = lambda x: jnp.sum(x**2)  # noqa: E731
    target = tw.Target(lambda x: -0.5 * jnp.sum(x**2), dim)
    line, ring = tw.Grid(-1.0, 1.0, 4), tw.Grid(-1.0, 1.0, 4, tw.Periodic())
    plane = tw.Grid((-1.0, -1.0), (1.0, 1.0), (3, 3))
    points = jnp.linspace(-1.0, 1.0, 8)[:, None]
    flat = lambda grid: tw.GridDensity.normalised(jnp.ones(grid.shape), grid)  # noqa: E731
    return {
        "energy": {
            "any function": _any_function,
            "PotentialEnergy": tw.PotentialEnergy(square),
            "InteractionEnergy": tw.InteractionEnergy(square),
            "Entropy": tw.Entropy(),
            "KL": tw.KL(target),
            "FDivergence": tw.FDivergence(tw.generators.forward_kl, target),
            "InternalEnergy": tw.InternalEnergy(lambda q: q**2),
            "PorousMedium": tw.PorousMedium(2.0),
            "MaximumMeanDiscrepancy": tw.MaximumMeanDiscrepancy(
                tw.Samples(jnp.zeros((2, dim))), tw.kernels.gaussian(1.0)
            ),
            "DirichletEnergy": tw.DirichletEnergy(),
            "FisherInformation": tw.FisherInformation(),
            "Congestion": tw.Congestion(2.0),
            "Functional": tw.Functional(lambda state: state.expect(square)),
            "NegativeLogLikelihood": tw.NegativeLogLikelihood(jnp.ones(2)),
            "HalfDeviance": tw.HalfDeviance(jnp.ones(2)),
            "IntegralFunctional": tw.IntegralFunctional(lambda x, y, slope: 0.5 * slope**2),
            "Action": tw.Action(lambda y: 0.5 * y**2),
            "Box": tw.Box(),
            "NonNegative": tw.NonNegative(),
            "L1": tw.L1(1.0),
            "ElasticNet": tw.ElasticNet(1.0, 1.0),
            "GroupLasso": tw.GroupLasso(1.0),
            "Simplex": tw.Simplex(2.0),
            "Hyperplane": tw.Hyperplane(2.0),
            "L2Ball": tw.L2Ball(2.0),
            "MiniBatch": tw.MiniBatch(lambda state, example: example * _any_function(state), jnp.ones(2), 1),
        },
        "state": {
            "vector": jnp.ones(2),
            "matrix": jnp.eye(2),
            "GridDensity, 1D": flat(line),
            "GridDensity, 1D periodic": flat(ring),
            "GridDensity, 2D": flat(plane),
            "GridFunction": tw.GridFunction(jnp.linspace(0.0, 1.0, 9), tw.Grid(0.0, 1.0, 8)),
            "Particles": tw.Particles(points),
            "Particles with KernelDensity": tw.Particles(points, density=tw.KernelDensity()),
            "Gaussian": tw.Gaussian(jnp.zeros(1), jnp.eye(1)),
            "Parametric": tw.Parametric(jnp.ones(2), Normal()),
        },
        "geometry": {
            "Euclidean": tw.Euclidean(),
            "Mahalanobis": tw.Mahalanobis(jnp.eye(2)),
            "PNorm": tw.PNorm(3.0),
            "OneNorm": tw.OneNorm(),
            "MaxNorm": tw.MaxNorm(),
            "SpectralNorm": tw.SpectralNorm(),
            "NuclearNorm": tw.NuclearNorm(),
            "SchattenNorm": tw.SchattenNorm(3.0),
            "FrobeniusNorm": tw.FrobeniusNorm(),
            "GroupNorm": tw.GroupNorm(),
            "OneToTwoNorm": tw.OneToTwoNorm(),
            "OneToRMSNorm": tw.OneToRMSNorm(),
            "RMSToMaxNorm": tw.RMSToMaxNorm(),
            "RMSToRMSNorm": tw.RMSToRMSNorm(),
            "MaxProduct": tw.MaxProduct(tw.MaxNorm()),
            "SumProduct": tw.SumProduct(tw.OneNorm()),
            "EuclideanProduct": tw.EuclideanProduct(tw.Euclidean()),
            "Bregman": tw.Bregman(_any_function),
            "Hessian": tw.Hessian(_any_function),
            "Riemannian": tw.Riemannian(lambda x: jnp.eye(x.size, dtype=x.dtype)),
            "L2": tw.L2(),
            "Sobolev": tw.Sobolev(),
            "FisherRao": tw.FisherRao(),
            "EmpiricalFisher": _empirical_fisher(),
            "HellingerKantorovich": tw.HellingerKantorovich(),
            "Wasserstein": tw.Wasserstein(),
        },
        "scheme": {
            "Constrained": tw.Constrained(0.1),
            "Explicit": tw.Explicit(0.1),
            "LinearlyImplicit": tw.LinearlyImplicit(0.1),
            "Proximal": tw.Proximal(0.1),
            "Continuous": tw.Continuous(0.1),
            "Langevin": tw.Langevin(0.1),
            "ForwardBackward": tw.ForwardBackward(0.1),
            "ProximalNewton": tw.ProximalNewton(),
            "Momentum": tw.Momentum(0.1),
            "MirrorMomentum": tw.MirrorMomentum(0.1),
        },
    }


def _empirical_fisher() -> Any:
    with warnings.catch_warnings():
        # It warns that it is not the Fisher matrix, which the table need not repeat.
        warnings.simplefilter("ignore")
        return tw.EmpiricalFisher(jnp.ones(2))


def _any_function(state: Any) -> Any:
    """The sum of the squares of all numbers of a state: a function of a state of any kind."""
    leaves = jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))
    return sum((jnp.sum(leaf**2) for leaf in leaves), start=jnp.zeros(()))


@functools.cache
def find_combinations() -> tuple[Combination, ...]:
    """Every combination with the library's answer, from `tw.why_unsupported`; asked once in a process."""
    choices = representatives()
    by_dim = {dim: representatives(dim)["energy"] for dim in (1, 2)}
    unfit_at = {
        state_name: {
            name: None if name in _WITH_A_PROXIMAL_MAP else _reason(check_energy, as_energy(energy), state)
            for name, energy in by_dim[getattr(state, "dim", 1)].items()
        }
        for state_name, state in choices["state"].items()
    }
    found = []
    for (state_name, state), (geometry_name, geometry) in itertools.product(
        choices["state"].items(), choices["geometry"].items()
    ):
        energies, unfit = by_dim[getattr(state, "dim", 1)], unfit_at[state_name]
        no_metric = _reason(geometry.at, state)
        answers: dict[str, str | None] = {}
        for (energy_name, energy), (scheme_name, scheme) in itertools.product(
            energies.items(), choices["scheme"].items()
        ):
            if no_metric is not None or unfit[energy_name] is not None:
                reason = no_metric or unfit[energy_name]
            elif energy_name in _WITH_A_PROXIMAL_MAP[1:]:
                reason = answers[scheme_name]
                reason = reason and reason.replace(_WITH_A_PROXIMAL_MAP[0], energy_name)
            else:
                reason = tw.why_unsupported(energy, state, geometry=geometry, scheme=scheme)
            if energy_name == _WITH_A_PROXIMAL_MAP[0]:
                answers[scheme_name] = reason
            found.append(Combination(state_name, geometry_name, energy_name, scheme_name, reason))
    return tuple(found)


def _reason(check: Callable[..., Any], *choices: Any) -> str | None:
    """What a check says, or `None` if it has nothing to say."""
    try:
        check(*choices)
    except (tw.UnsupportedCombination, ValueError) as error:
        return str(error)
    return None


def lines(found: Sequence[Combination]) -> list[Line]:
    """The table: states, and for each the energies and geometries that support the same schemes, together."""
    schemes = scheme_names(found)
    cells: dict[tuple[str, str, str], tuple[bool, ...]] = {}
    for (state, geometry, energy), group in itertools.groupby(found, lambda c: (c.state, c.geometry, c.energy)):
        answers = {entry.scheme: entry.reason is None for entry in group}
        cells[state, geometry, energy] = tuple(answers[name] for name in schemes)
    rows: dict[tuple[str, str, tuple[bool, ...]], list[str]] = {}
    for (state, geometry, energy), supported in cells.items():
        if any(supported):
            rows.setdefault((state, geometry, supported), []).append(energy)
    merged: dict[tuple[str, tuple[str, ...], tuple[bool, ...]], list[str]] = {}
    for (state, geometry, supported), energies in rows.items():
        merged.setdefault((state, tuple(energies), supported), []).append(geometry)
    return [Line(state, tuple(geometries), energies, yes) for (state, energies, yes), geometries in merged.items()]


def scheme_names(found: Sequence[Combination]) -> tuple[str, ...]:
    """The columns of the table."""
    return tuple(dict.fromkeys(entry.scheme for entry in found))


def _cells(found: Sequence[Combination]) -> Iterator[tuple[str, str, str, *tuple[str, ...]]]:
    names = dict.fromkeys(entry.energy for entry in found)
    everything = tuple(name for name in names if name not in _NOT_OF_DENSITIES)
    elsewhere = tuple(name for name in everything if name not in _OF_GRADIENTS)
    for line in lines(found):
        # A mini-batch is a function like any other.
        shown = tuple(name for name in line.energies if name != "MiniBatch" or len(line.energies) == 1)
        energies = "every energy of densities" if shown == everything else ", ".join(shown)
        energies = "every energy of densities but those of gradients" if shown == elsewhere else energies
        energies = "constraints and penalties" if shown == _WITH_A_PROXIMAL_MAP else energies
        yield line.state, ", ".join(line.geometries), energies, *(YES if yes else NO for yes in line.supported)


# A likelihood is an energy of a family's parameters; every other energy is one of densities.
_OF_PARAMETERS = ("NegativeLogLikelihood", "HalfDeviance")

# What these go with is what the first of them goes with: they differ in their proximal map alone.
_WITH_A_PROXIMAL_MAP = ("Box", "NonNegative", "L1", "ElasticNet", "GroupLasso", "Simplex", "Hyperplane", "L2Ball")
_NOT_OF_DENSITIES = (
    *_OF_PARAMETERS,
    *_WITH_A_PROXIMAL_MAP,
    "MiniBatch",
    "IntegralFunctional",
    "Action",
    # A constraint, which few solvers take.
    "Congestion",
)
# These need a grid.
_OF_GRADIENTS = ("DirichletEnergy", "FisherInformation")


def as_markdown(found: Sequence[Combination] | None = None) -> str:
    """The table in Markdown, as the README shows it."""
    found = find_combinations() if found is None else found
    head = ("state", "geometry", "energies", *scheme_names(found))
    rows = [head, ("---", "---", "---", *(":-:" for _ in scheme_names(found))), *_cells(found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def print_table(console: Console, found: Sequence[Combination]) -> None:
    """The table for a terminal: a heading for each state, with its geometries and energies below."""
    schemes = scheme_names(found)
    wide = console.width >= 110
    heads = [name if wide else f"{name[:4]}." for name in schemes]
    left = console.width - sum(len(head) + 2 for head in heads) - 4
    widths = [left * 2 // 5, left - left * 2 // 5, *map(len, heads)]

    def grid(*rows: Sequence[Any]) -> Table:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for i, width in enumerate(widths):
            table.add_column(width=width, justify="center" if i > 1 else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        return table

    console.print(grid([Text(head, style="dim") for head in ("  geometry", "energies", *heads)]))
    for state, group in itertools.groupby(_cells(found), key=lambda row: row[0]):
        console.print(Text(state, style="bold"))
        for _, geometries, energies, *yes in group:
            marks = (Text(mark, style="green" if mark == YES else "dim") for mark in yes)
            console.print(grid([Padding(Text(geometries), (0, 0, 0, 2)), energies, *marks]))


def reasons(found: Sequence[Combination]) -> list[str]:
    """Why what is not in the table is not: each reason once, with the combinations that it is the reason for."""
    grouped: dict[str, list[Combination]] = {}
    for entry in found:
        if entry.reason is not None:
            grouped.setdefault(entry.reason, []).append(entry)
    everything = {name: {getattr(entry, name) for entry in found} for name in ("energy", "scheme")}
    texts = []
    for reason, entries in grouped.items():
        parts = []
        for name in ("energy", "state", "geometry", "scheme"):
            names = list(dict.fromkeys(getattr(entry, name) for entry in entries))
            parts.append(f"every {name}" if set(names) == everything.get(name) else ", ".join(names))
        texts.append(" × ".join(parts) + "".join(f"\n    {line}" for line in reason.splitlines()) + "\n")
    return texts
