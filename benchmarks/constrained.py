"""Constrained and penalised problems with known minima, by `tw.minimise` and SciPy's solvers in the same process.

python -m benchmarks.constrained                              # everything; writes results/constrained.json and .md
python -m benchmarks.constrained --solvers thalweg --reuse    # only thalweg anew, the peers from the file
python -m benchmarks.constrained --only HS5,LASSO --reuse
python -m benchmarks.constrained --table                      # only write the table again
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import thalweg as tw
from benchmarks import _harness as harness
from benchmarks._minimisers import GRADIENT_TOLERANCE, MAX_SECONDS, MAX_STEPS

OURS = "thalweg"
# f − f* against f₀ − f*, and how far a bound or the linear constraint may be missed.
TOLERANCE, FEASIBILITY = 1e-6, 1e-8


class Problem(NamedTuple):
    """f, bounds, an ℓ1 weight, at most one linear constraint Σaᵢxᵢ = b, and the least value of F.

    `start`: where to begin; thalweg projects it, and so do the peers' calls.
    """

    fn: Callable[[Any], Any]
    start: np.ndarray
    best: float
    lower: Any = -np.inf
    upper: Any = np.inf
    weight: float = 0.0
    normal: Any = None
    offset: float = 0.0
    simplex: bool = False


def _hs62(x: Any) -> Any:
    a = jnp.log((x[0] + x[1] + x[2] + 0.03) / (0.09 * x[0] + x[1] + x[2] + 0.03))
    b = jnp.log((x[1] + x[2] + 0.03) / (0.07 * x[1] + x[2] + 0.03))
    c = jnp.log((x[2] + 0.03) / (0.13 * x[2] + 0.03))
    return -32.174 * (255 * a + 280 * b + 290 * c)


def _colville(x: Any) -> Any:
    f = 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2 + 90 * (x[3] - x[2] ** 2) ** 2 + (1 - x[2]) ** 2
    return f + 10.1 * ((x[1] - 1) ** 2 + (x[3] - 1) ** 2) + 19.8 * (x[1] - 1) * (x[3] - 1)


def _rosenbrock(x: Any) -> Any:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def _hs2() -> float:
    a = math.sqrt(598 / 1200)
    x = 2 * a * math.cos(math.acos(1 / (400 * a**3)) / 3)
    return 100 * (1.5 - x**2) ** 2 + (1 - x) ** 2


def _quadratic(matrix: np.ndarray, vector: np.ndarray) -> Callable[[Any], Any]:
    q, c = jnp.asarray(matrix), jnp.asarray(vector)
    return lambda x: 0.5 * x @ (q @ x) + c @ x


def _least_squares(design: np.ndarray, outputs: np.ndarray) -> Callable[[Any], Any]:
    a, b = jnp.asarray(design), jnp.asarray(outputs)
    return lambda x: 0.5 * jnp.sum((a @ x - b) ** 2)


def _spectrum(draw: Any, size: int, condition: float) -> np.ndarray:
    basis, _ = np.linalg.qr(draw.normal(size=(size, size)))
    return basis * np.geomspace(1, 1 / condition, size) @ basis.T


def _known_quadratic(matrix: np.ndarray, point: np.ndarray, multipliers: np.ndarray, **constraints: Any) -> Problem:
    """½xᵀQx + cᵀx whose minimum is the point: c is chosen for Qx + c = multipliers (≥ 0 at a lower, ≤ 0 at an upper
    bound, along the normal of the linear constraint).
    """
    vector = multipliers - matrix @ point
    best = 0.5 * point @ matrix @ point + vector @ point
    start = np.full(point.size, 1.0 / point.size if constraints.get("simplex") else 0.0)
    return Problem(_quadratic(matrix, vector), start, float(best), **constraints)


def _box_quadratic(size: int = 100, condition: float = 1e6) -> Problem:
    draw = np.random.default_rng(1)
    side = draw.choice([-1, 0, 1], size=size, p=[0.3, 0.4, 0.3])
    point = np.where(side == 0, draw.uniform(-0.9, 0.9, size), side.astype(float))
    multipliers = -side * draw.uniform(0.1, 1, size)
    return _known_quadratic(_spectrum(draw, size, condition), point, multipliers, lower=-1.0, upper=1.0)


def _nonnegative_least_squares(rows: int = 120, size: int = 60) -> Problem:
    draw = np.random.default_rng(2)
    design = draw.normal(size=(rows, size))
    active = draw.random(size) < 0.5
    point, multipliers = (
        np.where(active, 0, draw.uniform(0.5, 2, size)),
        np.where(active, draw.uniform(0.5, 2, size), 0),
    )
    outputs = design @ (point - np.linalg.solve(design.T @ design, multipliers))
    best = 0.5 * np.sum((design @ point - outputs) ** 2)
    return Problem(_least_squares(design, outputs), np.ones(size), float(best), lower=0.0)


def _lasso(rows: int = 120, size: int = 60, weight: float = 3.0) -> Problem:
    draw = np.random.default_rng(3)
    design = draw.normal(size=(rows, size))
    zero = draw.random(size) < 0.7
    point = np.where(zero, 0, draw.normal(size=size) * 2)
    sign = np.where(zero, draw.uniform(-0.9, 0.9, size), np.sign(point))
    outputs = design @ (point + np.linalg.solve(design.T @ design, weight * sign))
    best = 0.5 * np.sum((design @ point - outputs) ** 2) + weight * np.sum(np.abs(point))
    return Problem(_least_squares(design, outputs), np.zeros(size), float(best), weight=weight)


def _simplex_quadratic(size: int = 50, condition: float = 1e4) -> Problem:
    draw = np.random.default_rng(4)
    zero = draw.random(size) < 0.6
    point = np.where(zero, 0, draw.uniform(0.5, 1.5, size))
    point = point / np.sum(point)
    multipliers = np.where(zero, draw.uniform(0.05, 0.5, size), 0) + 0.3
    matrix = _spectrum(draw, size, condition)
    return _known_quadratic(matrix, point, multipliers, lower=0.0, normal=np.ones(size), offset=1.0, simplex=True)


def _support_vectors(size: int = 60, cost: float = 2.0) -> Problem:
    """The dual of a support vector machine with a Gaussian kernel, its linear term chosen for a known solution."""
    draw = np.random.default_rng(5)
    inputs = draw.normal(size=(size, 2))
    labels = np.where(inputs[:, 0] + 0.5 * draw.normal(size=size) > 0, 1.0, -1.0)
    kernel = np.exp(-0.5 * np.sum((inputs[:, None] - inputs[None]) ** 2, axis=-1)) + 1e-3 * np.eye(size)
    side = draw.choice([-1, 0, 1], size=size, p=[0.5, 0.3, 0.2])
    point = np.select([side < 0, side > 0], [0.0, cost], draw.uniform(0.2, 0.8, size) * cost)
    multipliers = -side * draw.uniform(0.1, 1, size) + 0.4 * labels
    offset = float(labels @ point)
    matrix = kernel * labels[:, None] * labels
    return _known_quadratic(matrix, point, multipliers, lower=0.0, upper=cost, normal=labels, offset=offset)


def _portfolio(size: int = 40, most: float = 0.1) -> Problem:
    """Mean and variance with at most a tenth in each share, the means chosen for a known solution."""
    draw = np.random.default_rng(6)
    factors = draw.normal(size=(size, 5))
    matrix = factors @ factors.T * 0.01 + np.diag(draw.uniform(0.01, 0.05, size))
    point = np.zeros(size)
    point[:4], point[4:16] = most, draw.uniform(0.2, 0.8, 12)
    point[4:16] *= (1 - 4 * most) / np.sum(point[4:16])
    steep = draw.uniform(0.001, 0.01, size)
    multipliers = np.where(np.arange(size) < 4, -steep, np.where(np.arange(size) >= 16, steep, 0))
    return _known_quadratic(
        matrix, point, multipliers - 0.02, lower=0.0, upper=most, normal=np.ones(size), offset=1.0
    )._replace(start=np.full(size, 1 / size))


@cache
def problems() -> dict[str, Problem]:
    """By name; HS are those of Hock and Schittkowski, *Test Examples for Nonlinear Programming Codes* (1981)."""
    a, inf = np.asarray, np.inf
    return {
        "ROSENBROCK, x₁ ≤ ½": Problem(_rosenbrock, a([-1.2, 1.0]), 0.25, a([-2.0, -2.0]), a([0.5, 2.0])),
        "HS1": Problem(_rosenbrock, a([-2.0, 1.0]), 0.0, a([-inf, -1.5])),
        "HS2": Problem(_rosenbrock, a([-2.0, 1.0]), _hs2(), a([-inf, 1.5])),
        "HS3": Problem(lambda x: x[1] + 1e-5 * (x[1] - x[0]) ** 2, a([10.0, 1.0]), 0.0, a([-inf, 0.0])),
        "HS4": Problem(lambda x: (x[0] + 1) ** 3 / 3 + x[1], a([1.125, 0.125]), 8 / 3, a([1.0, 0.0])),
        "HS5": Problem(
            lambda x: jnp.sin(x[0] + x[1]) + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1,
            a([0.0, 0.0]),
            -math.sqrt(3) / 2 - math.pi / 3,
            a([-1.5, -3.0]),
            a([4.0, 3.0]),
        ),
        "HS28": Problem(
            lambda x: (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2,
            a([-4.0, 1.0, 1.0]),
            0.0,
            normal=a([1.0, 2.0, 3.0]),
            offset=1.0,
        ),
        "HS38": Problem(_colville, a([-3.0, -1.0, -3.0, -1.0]), 0.0, -10.0, 10.0),
        "HS45": Problem(lambda x: 2 - jnp.prod(x) / 120, np.full(5, 2.0), 1.0, 0.0, np.arange(1.0, 6.0)),
        "HS62": Problem(_hs62, a([0.7, 0.2, 0.1]), -26272.51448712, 0.0, 1.0, normal=np.ones(3), offset=1.0),
        "HS110": Problem(
            lambda x: jnp.sum(jnp.log(x - 2) ** 2 + jnp.log(10 - x) ** 2) - jnp.prod(x) ** 0.2,
            np.full(10, 9.0),
            -45.77846971,
            2.001,
            9.999,
        ),
        "BOX, n = 100": _box_quadratic(),
        "NNLS, n = 60": _nonnegative_least_squares(),
        "LASSO, n = 60": _lasso(),
        "SIMPLEX, n = 50": _simplex_quadratic(),
        "SVM, n = 60": _support_vectors(),
        "PORTFOLIO, n = 40": _portfolio(),
    }


def whole(problem: Problem) -> Callable[[Any], Any]:
    """F without its walls: f and the penalty."""
    return lambda x: problem.fn(x) + problem.weight * jnp.sum(jnp.abs(x))


def missed(problem: Problem, x: np.ndarray) -> float:
    """The largest amount by which a constraint is not satisfied."""
    worst = max(np.max(problem.lower - x), np.max(x - problem.upper), 0.0)
    return float(worst if problem.normal is None else max(worst, abs(problem.normal @ x - problem.offset)))


def thalweg(problem: Problem) -> Callable[[], harness.Answer]:
    """`tw.minimise` as it comes."""
    plus: Any = None
    if problem.simplex:
        plus = tw.Simplex(problem.offset)
    elif problem.normal is not None:
        plus = tw.Hyperplane(problem.offset, jnp.asarray(problem.normal))
    elif problem.weight:
        plus = tw.L1(problem.weight)
    bounded = not problem.simplex and bool(np.any(np.isfinite(problem.lower)) or np.any(np.isfinite(problem.upper)))
    lower, upper = (jnp.asarray(bound) if bounded else None for bound in (problem.lower, problem.upper))
    start = jnp.asarray(problem.start)

    def call() -> harness.Answer:
        path = tw.minimise(problem.fn, start, lower=lower, upper=upper, plus=plus, num_steps=MAX_STEPS)
        return harness.Answer(path.final.state, int(path.final.num_steps), path.message)

    return call


def _scipy(problem: Problem, method: str, options: Mapping[str, Any]) -> Callable[[], harness.Answer] | None:
    """SciPy's solver, with value and gradient compiled together, and the exact Hessian where it takes one. The ℓ1
    penalty is written with twice as many unknowns, x = u − v with u, v ≥ 0, as is usual for solvers of bounds.
    """
    if method == "L-BFGS-B" and problem.normal is not None:
        return None
    size, fn = problem.start.size, problem.fn
    lower: Any
    upper: Any
    lower, upper = (np.broadcast_to(bound, (size,)).astype(float) for bound in (problem.lower, problem.upper))
    start = np.clip(problem.start, lower, upper)
    if problem.weight:
        weight, inner = problem.weight, problem.fn
        fn = lambda z: inner(z[:size] - z[size:]) + weight * jnp.sum(z)  # noqa: E731
        start = np.concatenate([np.maximum(start, 0), np.maximum(-start, 0)])
        lower, upper = np.zeros(2 * size), np.full(2 * size, np.inf)
    value_and_gradient, hessian = jax.jit(jax.value_and_grad(fn)), jax.jit(jax.hessian(fn))
    linear = []
    if problem.normal is not None:
        linear = [scipy.optimize.LinearConstraint(problem.normal[None], problem.offset, problem.offset)]

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = value_and_gradient(x)
        return float(value), np.asarray(gradient)

    def call() -> harness.Answer:
        started = time.process_time()

        def callback(*_: Any) -> None:
            if time.process_time() - started > MAX_SECONDS:
                raise StopIteration

        found = scipy.optimize.minimize(
            both,
            start,
            jac=True,
            hess=(lambda x: np.asarray(hessian(x))) if method == "trust-constr" else None,
            bounds=scipy.optimize.Bounds(lower, upper),
            constraints=linear,
            method=method,
            callback=None if method == "SLSQP" else callback,
            options={"maxiter": MAX_STEPS, **options},
        )
        point = found.x[:size] - found.x[size:] if problem.weight else found.x
        return harness.Answer(point, int(found.nit), str(found.message))

    return call


SOLVERS: dict[str, Callable[[Problem], Callable[[], harness.Answer] | None]] = {
    OURS: thalweg,
    "L-BFGS-B": lambda problem: _scipy(
        problem, "L-BFGS-B", {"gtol": GRADIENT_TOLERANCE, "ftol": 1e-15, "maxfun": 10 * MAX_STEPS}
    ),
    "trust-constr": lambda problem: _scipy(
        problem, "trust-constr", {"gtol": GRADIENT_TOLERANCE, "xtol": 1e-12, "barrier_tol": 1e-10}
    ),
    "SLSQP": lambda problem: _scipy(problem, "SLSQP", {"ftol": 1e-14}),
}


def measure(name: str, solver: str, report: Callable[[str], None]) -> dict:
    """One problem by one solver: the value reached, recomputed here, the seconds and the solver's last word."""
    problem = problems()[name]
    call = SOLVERS[solver](problem)
    if call is None:
        return {"error": "takes no linear constraint"}
    answer, times = harness.timed(call, report)
    point = np.asarray(answer.point, np.float64)
    # Where f is asked outside its bounds it may have no value: a point beyond them by a rounding is moved back.
    value = float(whole(problem)(jnp.asarray(np.clip(point, problem.lower, problem.upper))))
    row = {"f": value, "missed": missed(problem, point), "steps": answer.num_steps}
    row |= {"seconds": times["seconds"], "cpu": times["cpu"], "compile": round(times["compile"], 3)}
    row = {key: None if isinstance(entry, float) and not math.isfinite(entry) else entry for key, entry in row.items()}
    return row | {"message": answer.message[:60]}


def solved(row: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether the point is feasible and F there within a millionth of f₀ − f* of the known minimum."""
    if entry.get("f") is None or entry.get("missed") is None or entry["missed"] > FEASIBILITY:
        return False
    return harness.is_solved(entry["f"], row["best"], row["f0"], TOLERANCE)


def run(file: Path, names: list[str], solvers: list[str], limits: harness.Limits) -> dict:
    """Measure `solvers` on the named problems, keeping what `file` holds of others."""
    data: dict[str, Any] = harness.load(file) or {"problems": {}}
    worker = harness.Worker("benchmarks.constrained", limits)
    for count, name in enumerate(names):
        problem, turn = problems()[name], count % len(solvers)
        # Nobody is always the first after a change of problem.
        entries = {solver: worker.measure(name, solver) for solver in solvers[turn:] + solvers[:turn]}
        inside = np.clip(problem.start, problem.lower, problem.upper)
        data["environment"] = harness.environment()
        row = data["problems"].setdefault(name, {"solvers": {}})
        row |= {"n": problem.start.size, "best": problem.best, "f0": float(whole(problem)(jnp.asarray(inside)))}
        row["solvers"] |= {solver: entries[solver] for solver in solvers}
        harness.save(file, data)
        words = [_words(row, solver) for solver in solvers]
        print(f"{count + 1:2d}/{len(names)} {name}: {'; '.join(words)}", flush=True)
    worker.close()
    return data


def _words(row: Mapping[str, Any], solver: str) -> str:
    entry = row["solvers"][solver]
    if "error" in entry:
        return f"{solver}: {entry['error']}"
    verdict = "" if solved(row, entry) else " UNSOLVED"
    return f"{solver} {entry['steps']} steps, {harness.milliseconds(entry['cpu'])} ms{verdict}"


def report(data: Mapping[str, Any]) -> str:
    """The tables, made of the raw data alone."""
    rows = data["problems"]
    solvers = [s for s in SOLVERS if any(s in row["solvers"] for row in rows.values())]
    good = {s: {n for n, row in rows.items() if solved(row, row["solvers"].get(s, {}))} for s in solvers}
    tried = {s: [n for n, row in rows.items() if "f" in row["solvers"].get(s, {})] for s in solvers}

    def median(solver: str, names: Any, what: str = "cpu") -> float:
        return harness.median(rows[name]["solvers"][solver][what] for name in names)

    summary = []
    for solver in solvers:
        both = good[solver] & good.get(OURS, set())
        theirs, ours = (median(s, both) for s in (solver, OURS)) if both else (math.nan, math.nan)
        summary.append(
            [
                solver,
                f"{len(good[solver])} of {len(tried[solver])}",
                len(both),
                harness.milliseconds(theirs),
                harness.milliseconds(ours),
                f"{ours / theirs:.2f}" if both else "–",
                f"{median(solver, tried[solver], 'compile'):.2f}",
            ]
        )
    names = ["solver", "solved", "solved by both", "its ms", "thalweg's ms", "ratio of medians", "s to compile"]
    cells = []
    for name, row in rows.items():
        line: list[Any] = [name, row["n"]]
        for solver in solvers:
            entry = row["solvers"].get(solver, {})
            if entry.get("f") is None:
                line.append("–")
                continue
            text = f"{harness.milliseconds(entry['cpu'])} ({entry['steps']})"
            line.append(text if solved(row, entry) else f"**no**, {text}")
        cells.append(line)
    return "\n".join(
        [
            f"# Constraints and penalties: {len(rows)} problems with known minima",
            "",
            f"Solved: every constraint holds to {FEASIBILITY:g} and F ≤ F* + {TOLERANCE:g}·(F₀ − F*), F recomputed from"
            f" the point and F₀ that of the start moved into its bounds. At most {MAX_STEPS} iterations each; gradient"
            f" tolerance {GRADIENT_TOLERANCE:g}; `tw.minimise` with its own. Times: processor time, median of at least"
            " three runs after compilation, one thread; a ratio below one: thalweg is faster. L-BFGS-B takes no linear"
            " constraint; the lasso is written for SciPy with twice as many unknowns."
            " HS2 has another local minimum, 4.94, beside the one that counts.",
            "",
            *harness.table(names, summary),
            "",
            "## Each problem: milliseconds (steps)",
            "",
            *harness.table(["problem", "n", *solvers], cells),
            "",
            harness.described(data["environment"]),
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of problems, or how they begin, separated by commas")
    parser.add_argument("--solvers", help=f"some of: {', '.join(SOLVERS)}")
    parser.add_argument("--reuse", action="store_true", help="keep what the file holds of other solvers and problems")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--file", type=Path, default=harness.RESULTS / "constrained.json")
    asked = parser.parse_args(arguments)
    if asked.table:
        data = harness.load(asked.file)
    else:
        solvers = asked.solvers.split(",") if asked.solvers else list(SOLVERS)
        wanted = asked.only.split(",") if asked.only else [""]
        names = [name for name in problems() if any(name == w or name.startswith((f"{w},", w + " ")) for w in wanted)]
        names = list(problems()) if wanted == [""] else names
        if not names or set(solvers) - set(SOLVERS):
            parser.error(f"unknown: {asked.only or ''} {asked.solvers or ''}")
        if not asked.reuse:
            asked.file.unlink(missing_ok=True)
        data = run(asked.file, names, solvers, harness.Limits())
    text = report(data)
    asked.file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
