"""Stiff flows of F = ½xᵀAx + ¼|x|⁴: steps, error and seconds of thalweg, diffrax and SciPy at equal reached accuracy.

Every solver is run at relative tolerances 1e-4, 1e-5, … 1e-10 (absolute ones a hundredth of that) and the first
whose end is within `ACCURACY` of the reference, in the norm of the state at t = 10, is shown: what a tolerance promises
differs from solver to solver, what it reaches is compared. Seconds are the best of three runs after the first, which
compiles. `thalweg` is `Continuous(10.0)` with nothing chosen and its default tolerances.

Run `python -m benchmarks.stiff`; `--small` leaves out the larger problems.
"""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

ACCURACY, END = 1e-6, 10.0
PROBLEMS = [(2, 1e6), (10, 1e3), (10, 1e6), (10, 1e9), (50, 1e6), (200, 1e6)]
_TOLERANCES = [10.0**-k for k in range(4, 11)]


def problem(num: int, condition: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A with eigenvalues from 1 to `condition`, evenly in the logarithm, in a random basis; a normal start; the end."""
    random = np.random.default_rng(1000 * seed + num)
    rates = np.logspace(0, np.log10(condition), num)
    basis = np.linalg.qr(random.normal(size=(num, num)))[0]
    start = random.normal(size=num)
    # In the eigenbasis, where the fast rates cost the slow ones no digits.
    end = solve_ivp(
        lambda _, y: -rates * y - (y @ y) * y,
        (0, END),
        basis.T @ start,
        method="Radau",
        jac=lambda _, y: -np.diag(rates) - (y @ y) * np.eye(num) - 2 * np.outer(y, y),
        rtol=1e-12,
        atol=1e-17,
    )
    matrix = basis * rates @ basis.T
    return 0.5 * (matrix + matrix.T), start, basis @ end.y[:, -1]


def _by_thalweg(matrix: np.ndarray, start: np.ndarray, solver: Any) -> Callable[[], tuple[np.ndarray, int, int]]:
    import jax.numpy as jnp

    import thalweg as tw

    curvature = jnp.asarray(matrix)
    scheme = tw.Continuous(END, solver)

    def energy(x: Any) -> Any:
        return 0.5 * x @ (curvature @ x) + 0.25 * jnp.sum(x**2) ** 2

    def run() -> tuple[np.ndarray, int, int]:
        path = tw.flow(energy, jnp.asarray(start), geometry=tw.Euclidean(), scheme=scheme, final_time=END, throw=False)
        if path.result != tw.RESULTS.successful:
            return np.full_like(start, np.nan), 0, 0
        rejected = int(path.measurements["rejected_substeps"].sum())
        return np.asarray(path.final.state), int(path.measurements["substeps"].sum()) - rejected, rejected

    return run


def _by_scipy(
    matrix: np.ndarray, start: np.ndarray, method: str, tolerance: float
) -> Callable[[], tuple[np.ndarray, int, int]]:
    def run() -> tuple[np.ndarray, int, int]:
        solution = solve_ivp(
            lambda _, x: -(matrix @ x) - (x @ x) * x,
            (0, END),
            start,
            method=method,
            jac=lambda _, x: -matrix - (x @ x) * np.eye(x.size) - 2 * np.outer(x, x),
            rtol=tolerance,
            atol=1e-2 * tolerance,
        )
        # SciPy does not say how often it rejected.
        return solution.y[:, -1], solution.t.size - 1, -1

    return run


def _solvers(matrix: np.ndarray, start: np.ndarray) -> Iterator[tuple[str, Callable[[float], Any]]]:
    import diffrax

    import thalweg as tw

    def by_diffrax(name: str) -> Callable[[float], Any]:
        return lambda tolerance: _by_thalweg(
            matrix, start, tw.ODESolver(getattr(diffrax, name)(), tolerance, 1e-2 * tolerance)
        )

    yield "thalweg", lambda _: _by_thalweg(matrix, start, None)
    for name in ("Kvaerno5", "Tsit5"):
        yield f"diffrax {name}", by_diffrax(name)
    for name in ("Radau", "BDF", "LSODA"):
        yield f"scipy {name}", lambda tolerance, name=name: _by_scipy(matrix, start, name, tolerance)


def rows(problems: list[tuple[int, float]] | None = None) -> Iterator[dict[str, Any]]:
    """One entry for each problem and solver: what it needed to reach `ACCURACY`, or its best if it did not."""
    for num, condition in problems or PROBLEMS:
        matrix, start, end = problem(num, condition)
        for name, make in _solvers(matrix, start):
            best: dict[str, Any] | None = None
            for tolerance in _TOLERANCES:
                run = make(tolerance)
                state, accepted, rejected = run()
                error = float(np.linalg.norm(state - end) / np.linalg.norm(end))
                row = {"num": num, "condition": condition, "solver": name, "tolerance": tolerance}
                row.update(accepted=accepted, rejected=rejected, error=error)
                if best is None or not best["error"] <= error:
                    best = row
                if error <= ACCURACY or name == "thalweg" or not np.isfinite(error):
                    best = {**row, "seconds": _seconds(run)}
                    break
            assert best is not None
            if name == "thalweg":
                best["tolerance"] = 1e-8
            yield best


def _seconds(run: Callable[[], Any]) -> float:
    found = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    """Print the table."""
    import jax

    jax.config.update("jax_enable_x64", True)
    print(f"| n | condition | solver | rtol | accepted | rejected | error | seconds |\n|{'---|' * 8}")
    for row in rows([p for p in PROBLEMS if p[0] <= 10] if "--small" in sys.argv else None):
        reached = row["error"] <= ACCURACY
        rejected = "" if row["rejected"] < 0 else row["rejected"]
        seconds = f"{row['seconds']:.3f}" if reached else "—"
        error = (
            f"{row['error']:.1e}" if reached else ("fails" if not np.isfinite(row["error"]) else f"{row['error']:.1e}")
        )
        print(
            f"| {row['num']} | {row['condition']:.0e} | {row['solver']} | {row['tolerance']:.0e} | {row['accepted']} | "
            f"{rejected} | {error} | {seconds} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
