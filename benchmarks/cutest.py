"""CUTEst in JAX: every unconstrained problem of `sif2jax` with at most 200 variables, by `tw.minimise` and its peers.

python -m benchmarks.cutest                                     # everything; writes results/cutest.json and .md
python -m benchmarks.cutest --solvers thalweg --reuse           # only thalweg anew, the peers from the file
python -m benchmarks.cutest --solvers thalweg --reuse --only ROSENBR,BEALE
python -m benchmarks.cutest --table                             # only write the table again
"""

import argparse
import importlib
import importlib.util
import math
import sys
import time
import types
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _harness as harness
from benchmarks._minimisers import GRADIENT_TOLERANCE, MAX_STEPS, RELATIVE_TOLERANCE, SOLVERS

MAX_SIZE = 200
TOLERANCE = 1e-6
OURS, NEWTON = "thalweg", "trust-exact"


@cache
def collection() -> types.ModuleType:
    """The unconstrained problems of sif2jax alone: to import the whole of it takes 40 s, for a constrained problem
    builds a matrix entry by entry; so its two outer packages are stood in for by empty ones with the same path."""
    spec = importlib.util.find_spec("sif2jax")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("sif2jax is not installed; `make bench-vector` installs it.")
    for name, below in (("sif2jax", ""), ("sif2jax.cutest", "cutest")):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(place) / below) for place in spec.submodule_search_locations]
        sys.modules[name] = package
    return importlib.import_module("sif2jax.cutest._unconstrained_minimisation")


def size_of(problem: Any) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(problem.y0))


def census() -> tuple[dict[str, int], dict[str, str]]:
    """The problems by name with their numbers of variables, and those left out with the reason."""
    found, left_out = {}, {}
    for problem in collection().unconstrained_minimisation_problems:
        try:
            size = size_of(problem)
        except Exception as error:
            left_out[problem.name] = f"does not load: {type(error).__name__}: {error}".splitlines()[0]
            continue
        if size > MAX_SIZE:
            left_out[problem.name] = f"{size} variables"
        else:
            found[problem.name] = size
    folder = Path(collection().__path__[0])
    contents = (folder / "__init__.py").read_text()
    for name in sorted(file.stem.upper() for file in folder.glob("[!_]*.py")):
        # Its authors comment an import out where a problem does not agree with the original yet.
        if name not in found and name not in left_out and f"# from .{name.lower()} import" in contents:
            left_out[name] = "withheld by sif2jax"
    return found, left_out


@cache
def _loaded(name: str) -> tuple[Callable[..., Any], Any, Callable[..., Any]]:
    jax.clear_caches()
    problem = next(p for p in collection().unconstrained_minimisation_problems if p.name == name)
    args = problem.args

    def fn(x: Any) -> Any:
        return jnp.asarray(problem.objective(x, args)).reshape(())

    return fn, jnp.asarray(problem.y0, jnp.float64), jax.jit(jax.value_and_grad(fn))


def measure(name: str, solver: str, report: Callable[[str], None]) -> dict:
    """One problem by one solver: the value reached, recomputed here, the seconds and the solver's last word."""
    fn, x0, value_and_gradient = _loaded(name)
    start = float(value_and_gradient(x0)[0])
    answer, times = harness.timed(SOLVERS[solver](fn, x0), report)
    value, gradient = value_and_gradient(jnp.asarray(answer.point, jnp.float64))
    row = {"f": float(value), "gradient": float(jnp.linalg.norm(gradient)), "steps": answer.num_steps}
    row |= {"seconds": times["seconds"], "cpu": times["cpu"], "compile": round(times["compile"], 3)}
    row["message"] = answer.message[:60]
    # JSON knows neither infinity nor NaN.
    row = {key: None if isinstance(entry, float) and not math.isfinite(entry) else entry for key, entry in row.items()}
    return row | {"start": start if math.isfinite(start) else None}


def run(
    file: Path, names: Mapping[str, int], left_out: Mapping[str, str], solvers: list[str], limits: harness.Limits
) -> dict:
    """Measure `solvers` on the named problems, keeping what `file` holds of others; saved after each problem, so that
    two runs for different solvers may write the same file."""
    data: dict[str, Any] = {}
    worker = harness.Worker("benchmarks.cutest", limits)
    for count, (name, size) in enumerate(sorted(names.items()), 1):
        # Nobody is always the first after a change of problem.
        turn = count % len(solvers)
        entries: dict[str, dict] = {}
        for solver in solvers[turn:] + solvers[:turn]:
            # What one peer cannot compile within the limit is not tried with the next, for that would take hours.
            heavy = [s for s, entry in entries.items() if s != OURS and "first call" in entry.get("error", "")]
            skip = {"error": f"not tried: {heavy[0]} exceeded the limit of the first call"} if heavy else None
            entries[solver] = skip if skip and solver != OURS else worker.measure(name, solver)
        data = harness.load(file) or {"problems": {}}
        data |= {"environment": harness.environment(), "left out": dict(left_out)}
        row = data["problems"].setdefault(name, {"n": size, "f0": None, "solvers": {}})
        starts = [entry.pop("start") for entry in entries.values() if "start" in entry]
        row["f0"] = starts[0] if starts else row["f0"]
        row["solvers"] |= {solver: entries[solver] for solver in solvers}
        harness.save(file, data)
        print(f"{count:3d}/{len(names)} {name} n={size}: {line(row, solvers)}", flush=True)
    worker.close()
    return data


def line(row: Mapping[str, Any], solvers: list[str]) -> str:
    """One problem in words."""
    words = [f"best {harness.best_value(entry.get('f') for entry in row['solvers'].values()):.7g}"]
    for solver in solvers:
        entry = row["solvers"][solver]
        if "error" in entry:
            words.append(f"{solver} {entry['error']}")
            continue
        value = math.nan if entry["f"] is None else entry["f"]
        verdict = "" if solved(row, entry) else " UNSOLVED"
        words.append(f"{solver} {value:.7g} {harness.milliseconds(entry['cpu'])} ms {entry['steps']} steps{verdict}")
    return "; ".join(words)


def solved(row: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    best = harness.best_value(other.get("f") for other in row["solvers"].values())
    value = entry.get("f")
    return value is not None and harness.is_solved(value, best, row["f0"] or 0.0, TOLERANCE)


def report(data: Mapping[str, Any]) -> str:
    """The table, made of the raw data alone."""
    problems = data["problems"]
    present = {solver for row in problems.values() for solver in row["solvers"]}
    solvers = [solver for solver in SOLVERS if solver in present]
    good = {s: {name for name, row in problems.items() if solved(row, row["solvers"].get(s, {}))} for s in solvers}

    def seconds(solver: str, names: Any) -> list[float]:
        entries = (problems[name]["solvers"].get(solver, {}) for name in names)
        return [entry["cpu"] for entry in entries if "cpu" in entry]

    def compiling(solver: str) -> float:
        entries = (row["solvers"].get(solver, {}) for row in problems.values())
        return harness.median(entry["compile"] for entry in entries if "compile" in entry)

    rows = []
    for solver in solvers:
        both = sorted(good[solver] & good.get(OURS, set()))
        theirs, ours = seconds(solver, both), seconds(OURS, both)
        rows.append(
            [
                solver,
                len(good[solver]),
                harness.milliseconds(harness.median(seconds(solver, problems))),
                len(both),
                harness.milliseconds(harness.median(theirs)),
                harness.milliseconds(harness.median(ours)),
                f"{harness.median(ours) / harness.median(theirs):.2f}" if both else "–",
                f"{harness.median(o / t for o, t in zip(ours, theirs, strict=True)):.2f}",
                f"{compiling(solver):.2f}",
            ]
        )
    header = ["solver", "solved", "ms, all", "solved by both", "its ms", "thalweg's ms"]
    header += ["ratio of medians", "median ratio", "s to compile"]
    lines = [
        f"# CUTEst in JAX: {len(problems)} unconstrained problems with at most {MAX_SIZE} variables",
        "",
        f"Solved: f ≤ best of all solvers + {TOLERANCE:g}·(f₀ − best), f recomputed from the point. At most {MAX_STEPS}"
        f" iterations each; gradient tolerance {GRADIENT_TOLERANCE:g} (SciPy, optax), relative and absolute"
        f" {RELATIVE_TOLERANCE:g} (optimistix); `tw.minimise` with its own tolerance. Times: processor time, median of"
        " at least three runs after compilation, one thread; ratios below one: thalweg is faster.",
        "",
        *harness.table(header, rows),
        "",
        "## Unsolved",
        "",
    ]
    for solver in solvers:
        missing = sorted(set(problems) - good[solver])
        lines.append(f"- {solver} ({len(missing)}): {', '.join(missing) or 'none'}")
    slower = []
    for name in sorted(good.get(OURS, set()) & good.get(NEWTON, set())):
        ours, theirs = (problems[name]["solvers"][solver]["cpu"] for solver in (OURS, NEWTON))
        if ours > 2 * theirs:
            slower.append(f"{name} ({ours / theirs:.1f}×)")
    lines += ["", f"## Slower than {NEWTON} by more than 2×, of those solved by both ({len(slower)})", ""]
    lines += [", ".join(slower) or "none"]
    lines += ["", "## Errors and limits", ""]
    errors: dict[str, list[str]] = {}
    for name, row in problems.items():
        for solver, entry in row["solvers"].items():
            if "error" in entry:
                errors.setdefault(f"{solver}: {entry['error']}", []).append(name)
    lines += [f"- {error}: {', '.join(names)}" for error, names in sorted(errors.items())] or ["none"]
    reasons: dict[str, list[str]] = {}
    for name, reason in data["left out"].items():
        reason = f"more than {MAX_SIZE} variables" if reason.endswith(" variables") else reason
        reasons.setdefault(reason, []).append(name)
    lines += ["", "## Left out", ""]
    lines += [f"- {reason} ({len(names)}): {', '.join(sorted(names))}" for reason, names in sorted(reasons.items())]
    return "\n".join([*lines, "", harness.described(data["environment"]), ""])


def main(arguments: list[str] | None = None) -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of problems, separated by commas")
    parser.add_argument("--solvers", help=f"some of: {', '.join(SOLVERS)}")
    parser.add_argument("--reuse", action="store_true", help="keep what the file holds of other solvers and problems")
    parser.add_argument("--missing", action="store_true", help="with --reuse: only problems that lack a solver")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--file", type=Path, default=harness.RESULTS / "cutest.json")
    parser.add_argument("--first", type=float, default=harness.Limits.first, help="seconds for a first call")
    parser.add_argument("--run", type=float, default=harness.Limits.run, help="seconds for each later call")
    asked = parser.parse_args(arguments)
    started = time.perf_counter()
    if asked.table:
        data = harness.load(asked.file)
    else:
        solvers = asked.solvers.split(",") if asked.solvers else list(SOLVERS)
        names, left_out = census()
        only = asked.only.split(",") if asked.only else list(names)
        unknown = [s for s in solvers if s not in SOLVERS] + [name for name in only if name not in names]
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}")
        if not asked.reuse:
            asked.file.unlink(missing_ok=True)
        if asked.missing:
            known = harness.load(asked.file).get("problems", {})
            only = [name for name in only if set(solvers) - set(known.get(name, {"solvers": ()})["solvers"])]
        data = run(
            asked.file, {name: names[name] for name in only}, left_out, solvers, harness.Limits(asked.first, asked.run)
        )
    text = report(data)
    asked.file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text.split("\n## Errors")[0])
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
