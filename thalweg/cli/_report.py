"""Figures and report of a run: what is known of the answer is shown beside what was reached."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from thalweg._path import Path
from thalweg.cli._folder import RunFolder
from thalweg.cli._plan import Choices, Plan
from thalweg.cli._rows import Row
from thalweg.problems import DensityProblem, RegressionProblem, TargetProblem, VectorProblem


def report(
    plan: Plan, choices: Choices, path: Path, rows: Sequence[Row], folder: RunFolder, record: dict[str, Any]
) -> None:
    """Write `figures/` and `report.html`. The path is safe already: a failure here is kept in the record and costs
    nothing else.
    """
    from thalweg.plotting import write_figures, write_report

    view = {"energy": choices.energy, **_known_answer(choices.problem, path), **plan.report}
    frames = {name: view.pop(name) for name in ("num_frames",) if name in view}
    settings = {name: table for name, table in plan.document.tables.items() if table and name != "report"}
    try:
        write_figures(folder.path / "figures", path, title=plan.title, **view)
        write_report(
            folder.path / "report.html",
            path,
            title=plan.title,
            settings=_flat(settings),
            reference=[row.for_report() for row in rows],
            code=plan.code(),
            notes=_notes(plan, choices, record),
            **view,
            **frames,
        )
        record["files"] |= {"report": "report.html", "figures": "figures"}
    except Exception as error:
        record["report_error"] = f"{type(error).__name__}: {error}"


def _notes(plan: Plan, choices: Choices, record: dict[str, Any]) -> list[str]:
    notes = [] if record["status"] == "done" else [f"This run did not end as asked: {record['message']}"]
    if choices.problem is not None:
        notes.append(f"The problem is `{choices.problem.name}` of thalweg.problems. Source: {choices.problem.source}")
    notes.append(f"Computed in {plan.options.precision} with seed {plan.options.seed}.")
    return notes


def _flat(tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tables within tables, as tables of their own with dotted names; arrays of tables are counted from one."""
    found: dict[str, dict[str, Any]] = {}

    def walk(name: str, table: dict[str, Any]) -> None:
        found[name] = {}
        for key, value in table.items():
            if isinstance(value, dict):
                walk(f"{name}.{key}", value)
            elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
                for i, item in enumerate(value):
                    walk(f"{name}.{key} {i + 1}", item)
            else:
                found[name][key] = value

    for name, table in tables.items():
        walk(name, table)
    return {name: table for name, table in found.items() if table}


def _known_answer(problem: Any, path: Path) -> dict[str, Any]:
    """The state and the energy that should be reached, as the figures take them."""
    time = float(path.final.time)
    match problem:
        case VectorProblem():
            return {"reference_state": problem.minimiser, "reference_energy": problem.minimum}
        case DensityProblem() if problem.exact is not None:
            exact = problem.exact
            return {"reference_state": lambda x: exact(time, x)}
        case DensityProblem() if problem.stationary_log_density is not None:
            log_density = problem.stationary_log_density
            return {"reference_state": lambda x: jnp.exp(log_density(x)), "reference_energy": problem.minimum}
        case TargetProblem() if problem.log_evidence is not None:
            log_target, log_evidence = problem.log_density, problem.log_evidence
            return {"reference_state": lambda x: jnp.exp(log_target(x) - log_evidence)}
        case RegressionProblem():
            return {"reference_state": _with_params(path.final.state, problem.certified_params)}
    return {}


def _with_params(state: Any, params: Any) -> Any:
    from thalweg.states import Parametric

    return Parametric(params, state.family) if isinstance(state, Parametric) else params
