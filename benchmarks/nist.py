"""The nonlinear regressions of NIST, from both published starts, by `tw.fit` and by other least-squares solvers.

python -m benchmarks.nist                               # everything; writes results/nist.json and .md
python -m benchmarks.nist --solvers thalweg --reuse     # only thalweg anew
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import scipy.optimize

import thalweg as tw
from benchmarks import _harness as harness
from benchmarks._harness import Answer

MAX_STEPS = 5000
# Near what double precision allows: digits are counted here, so nobody should stop early.
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE, SCIPY_TOLERANCE = 1e-12, 1e-15, 1e-15
OURS = "thalweg"


@cache
def problem(dataset: str) -> Any:
    return tw.problems.nist_regression(dataset)


def thalweg(dataset: str) -> Callable[[Any], Answer]:
    """`tw.fit` with a normal likelihood, as it comes."""
    given = problem(dataset)

    def fit(start: Any) -> Answer:
        path = tw.fit(given.model, given.inputs, given.outputs, start, num_steps=MAX_STEPS)
        return Answer(path.final.state.params, int(path.final.num_steps), path.message)

    return fit


def _residuals(dataset: str) -> Callable[..., Any]:
    given = problem(dataset)
    return lambda params: given.model(params, given.inputs) - given.outputs


def _scipy(dataset: str, **options: Any) -> Callable[[Any], Answer]:
    residuals = jax.jit(_residuals(dataset))
    jacobian = jax.jit(jax.jacfwd(_residuals(dataset)))

    def fit(start: Any) -> Answer:
        found = scipy.optimize.least_squares(
            lambda x: np.asarray(residuals(x)),
            np.asarray(start),
            jac=lambda x: np.asarray(jacobian(x)),  # pyright: ignore[reportArgumentType]
            ftol=SCIPY_TOLERANCE,
            xtol=SCIPY_TOLERANCE,
            gtol=SCIPY_TOLERANCE,
            max_nfev=MAX_STEPS,
            **options,
        )
        return Answer(found.x, int(found.nfev), str(found.message))

    return fit


def optimistix_lm(dataset: str) -> Callable[[Any], Answer]:
    residuals = _residuals(dataset)
    solver = optx.LevenbergMarquardt(RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)

    @jax.jit
    def solve(start: Any) -> Any:
        found = optx.least_squares(lambda x, args: residuals(x), solver, start, max_steps=MAX_STEPS, throw=False)
        return found.value, found.stats["num_steps"], found.result == optx.RESULTS.successful

    def fit(start: Any) -> Answer:
        point, num_steps, converged = jax.block_until_ready(solve(start))
        return Answer(point, int(num_steps), "converged" if converged else "did not converge")

    return fit


SOLVERS: dict[str, Callable[[str], Callable[[Any], Answer]]] = {
    OURS: thalweg,
    "scipy trf": lambda dataset: _scipy(dataset, method="trf"),
    "scipy trf, x_scale='jac'": lambda dataset: _scipy(dataset, method="trf", x_scale="jac"),
    "scipy lm": lambda dataset: _scipy(dataset, method="lm"),
    "scipy lm, x_scale='jac'": lambda dataset: _scipy(dataset, method="lm", x_scale="jac"),
    "optimistix LM": optimistix_lm,
}


def measure(dataset: str, solver: str, report: Callable[[str], None]) -> dict:
    """One data set by one solver from each start: the digits reached and the seconds."""
    given, fit, rows = problem(dataset), SOLVERS[solver](dataset), []
    for start in given.starts:
        answer, times = harness.timed(lambda start=start: fit(start), report)
        digits = float(given.log_relative_error(jnp.asarray(answer.point, jnp.float64)))
        row = {"digits": round(digits, 2) if math.isfinite(digits) else None, "steps": answer.num_steps}
        rows.append(row | {key: round(times[key], 6) for key in ("seconds", "cpu", "compile")})
        rows[-1]["message"] = answer.message[:60]
    return {"starts": rows}


def digits_of(entry: Mapping[str, Any]) -> list[float]:
    """The digits of each start; nothing reached is minus infinity."""
    if "error" in entry:
        return [-math.inf, -math.inf]
    return [-math.inf if row["digits"] is None else row["digits"] for row in entry["starts"]]


def report(data: Mapping[str, Any]) -> str:
    """The table, made of the raw data alone."""
    problems = data["problems"]
    solvers = [solver for solver in SOLVERS if all(solver in row["solvers"] for row in problems.values())]
    rows, short = [], []
    for solver in solvers:
        entries = {name: row["solvers"][solver] for name, row in problems.items()}
        digits = [(name, start, d) for name, entry in entries.items() for start, d in enumerate(digits_of(entry), 1)]
        runs = [row for entry in entries.values() for row in entry.get("starts", ())]
        counts = [sum(d >= least for _, _, d in digits) for least in (4, 6, 8)]
        seconds = harness.median(row["cpu"] for row in runs)
        compiling = harness.median(entry["starts"][0]["compile"] for entry in entries.values() if "starts" in entry)
        rows.append([solver, len(digits), *counts, harness.milliseconds(seconds), f"{compiling:.2f}"])
        missed = [f"{name} from start {start} ({d:.2f})" for name, start, d in digits if d < 8]
        short.append(f"- {solver}: {', '.join(missed) or 'none'}")
    header = ["solver", "starts", "4 digits", "6 digits", "8 digits", "median ms", "s to compile"]
    lines = [
        f"# NIST nonlinear regression: {len(problems)} data sets, both starts",
        "",
        "Digits: −log₁₀ of the largest relative error of a parameter against the certified values (11 digits). SciPy's"
        f" `least_squares` with the exact Jacobian and every tolerance {SCIPY_TOLERANCE:g}; optimistix with rtol"
        f" {RELATIVE_TOLERANCE:g}, atol {ABSOLUTE_TOLERANCE:g}; at most {MAX_STEPS} steps. Times: processor time,"
        " median of at least three runs after compilation, one thread, then the median over the starts.",
        "",
        *harness.table(header, rows),
        "",
        "## Fewer than 8 digits",
        "",
        *short,
    ]
    return "\n".join([*lines, "", harness.described(data["environment"]), ""])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of data sets, separated by commas")
    parser.add_argument("--solvers", help="names of solvers, separated by semicolons")
    parser.add_argument("--reuse", action="store_true", help="keep what the file holds of other solvers and data sets")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--file", type=Path, default=harness.RESULTS / "nist.json")
    asked = parser.parse_args(arguments)
    started = time.perf_counter()
    data = harness.load(asked.file) if asked.reuse or asked.table else {}
    data = data or {"problems": {}}
    if not asked.table:
        solvers = asked.solvers.split(";") if asked.solvers else list(SOLVERS)
        names = asked.only.split(",") if asked.only else list(tw.problems.DATASETS)
        unknown = [s for s in solvers if s not in SOLVERS] + [n for n in names if n not in tw.problems.DATASETS]
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}")
        data["environment"] = harness.environment()
        worker = harness.Worker("benchmarks.nist")
        for name in names:
            row = data["problems"].setdefault(name, {"solvers": {}})
            for solver in solvers:
                row["solvers"][solver] = worker.measure(name, solver)
            reached = (
                f"{solver} {row['solvers'][solver].get('error') or digits_of(row['solvers'][solver])}"
                for solver in solvers
            )
            print(f"{name}: {'; '.join(reached)}", flush=True)
            harness.save(asked.file, data)
        worker.close()
    text = report(data)
    asked.file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
