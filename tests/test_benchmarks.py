"""The benchmarks measure what they say: wrong points are not counted as solved, and what hangs is ended."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _harness as harness
from benchmarks import _minimisers, constrained, cutest, nist, pinn


def bowl(x):
    return jnp.sum((x - 1.0) ** 2)


@pytest.fixture
def two_problems(monkeypatch):
    """A stand-in for sif2jax: a bowl, and one whose start is its minimum."""
    starts = {"BOWL": jnp.array([3.0, 0.0]), "THERE": jnp.array([1.0, 1.0])}
    value_and_gradient = jax.jit(jax.value_and_grad(bowl))
    monkeypatch.setattr(cutest, "_loaded", lambda name: (bowl, starts[name], value_and_gradient))

    def measured(*solvers):
        problems = {}
        for name, start in starts.items():
            row = {"n": 2, "f0": float(bowl(start)), "solvers": {}}
            for solver in solvers:
                row["solvers"][solver] = cutest.measure(name, solver, lambda phase: None)
            problems[name] = row
        return {"problems": problems, "environment": {}, "left out": {"HUGE": "5000 variables"}}

    return measured


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (2.0, True),
        (2.0 + 0.9e-6 * 8.0, True),
        (2.0 + 1.1e-6 * 8.0, False),
        (10.0, False),
        (math.nan, False),
        (math.inf, False),
        (-math.inf, False),
    ],
)
def test_solved_means_within_a_millionth_of_the_way_from_the_start_to_the_best(value, verdict):
    assert harness.is_solved(value, best=2.0, start=10.0) is verdict


def test_a_value_that_is_not_finite_is_never_the_best():
    assert harness.best_value([math.nan, 3.0, None, -math.inf]) == 3.0
    assert harness.best_value([None]) == math.inf


def test_a_solver_that_returns_a_wrong_point_is_not_counted_whatever_it_claims(two_problems, monkeypatch):
    def liar(fn, x0):
        return lambda: harness.Answer(x0 + 0.01, 1, "converged")

    def lost(fn, x0):
        return lambda: harness.Answer(x0 * jnp.nan, 1, "converged")

    def honest(fn, x0):
        return lambda: harness.Answer(jnp.ones(2), 1, "")

    monkeypatch.setattr(cutest, "SOLVERS", {"thalweg": honest, "liar": liar, "lost": lost})
    data = two_problems("thalweg", "liar", "lost")
    text = cutest.report(data)
    assert "- thalweg (0): none" in text
    assert "- liar (2): BOWL, THERE" in text
    assert "- lost (2): BOWL, THERE" in text
    assert "- more than 200 variables (1): HUGE" in text
    # NaN would not be JSON.
    assert data["problems"]["BOWL"]["solvers"]["lost"]["f"] is None


def test_a_peer_is_measured_with_the_value_recomputed_and_the_compilation_apart(two_problems):
    data = two_problems("trust-exact")
    entry = data["problems"]["BOWL"]["solvers"]["trust-exact"]
    # One Newton step solves a quadratic; the trust region lets it come in a few.
    assert entry["f"] < 1e-20
    assert entry["gradient"] <= _minimisers.GRADIENT_TOLERANCE
    assert 1 <= entry["steps"] < 20
    assert 0 < entry["cpu"] < entry["compile"]


def test_later_calls_are_timed_without_the_first():
    calls = []

    def call():
        calls.append(None)
        return harness.Answer(len(calls))

    answer, times = harness.timed(call)
    assert times["runs"] == len(calls) - 1 >= 3
    assert answer.point == len(calls)


def test_a_worker_that_hangs_is_ended_and_the_next_task_is_measured(tmp_path, monkeypatch):
    (tmp_path / "sleeper.py").write_text(
        "import time\n"
        "def measure(seconds, report):\n"
        "    if seconds < 0:\n"
        "        raise ValueError('no such problem')\n"
        "    report('run')\n"
        "    time.sleep(seconds)\n"
        "    return {'slept': seconds}\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    worker = harness.Worker("sleeper", harness.Limits(first=20.0, run=0.5))
    assert worker.measure(60.0) == {"error": "a run after compilation took longer than 0.5 s"}
    assert worker.measure(0.0) == {"slept": 0.0}
    assert worker.measure(-1.0) == {"error": "ValueError: no such problem"}
    worker.close()


def test_raw_data_come_back_as_they_were_written(tmp_path):
    data = {"environment": {"jax": "0"}, "problems": {"B": {"f": 1e-300}, "A": {"f": None}}}
    harness.save(tmp_path / "raw.json", data)
    assert harness.load(tmp_path / "raw.json") == data
    assert harness.load(tmp_path / "none.json") == {}


def test_a_least_squares_solver_that_fails_has_no_digits():
    assert nist.digits_of({"error": "ValueError"}) == [-math.inf, -math.inf]
    assert nist.digits_of({"starts": [{"digits": 8.5}, {"digits": None}]}) == [8.5, -math.inf]


def test_the_physics_informed_problem_is_the_published_one():
    places, weights = pinn.points()
    interior = np.asarray(weights[:, 0] > 0)
    assert (interior.sum(), (~interior).sum()) == (784, 116)
    # The loss is a mean over the interior and four times a mean over the boundary.
    np.testing.assert_allclose(jnp.sum(weights**2, axis=0), [1.0, 4.0], rtol=1e-12)
    params = pinn.initial_params(0)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 129
    # Δ tanh(w·x + b) = |w|² tanh″, tanh″ = −2 tanh (1 − tanh²).
    x = places[40]
    hidden = jnp.tanh(params["weight"] @ x + params["bias"])
    closed = params["out_weight"] @ (jnp.sum(params["weight"] ** 2, axis=1) * -2 * hidden * (1 - hidden**2))
    np.testing.assert_allclose(pinn.laplacian(lambda y: pinn.network(params, y), x), closed, rtol=1e-10)
    # At the solution −Δu = f: the residual of the exact solution is zero.
    source = 2 * jnp.pi**2 * pinn.solution(x)
    np.testing.assert_allclose(pinn.laplacian(pinn.solution, x), -source, rtol=1e-10)


def test_the_constrained_problems_have_the_minima_that_they_are_said_to_have():
    assert len(constrained.problems()) >= 12
    small = [constrained._box_quadratic(8, 10.0), constrained._nonnegative_least_squares(12, 6)]
    small += [constrained._lasso(12, 6), constrained._simplex_quadratic(8, 10.0), constrained._support_vectors(10)]
    for problem in [*small, constrained._portfolio(20)]:
        call = constrained.SOLVERS["SLSQP"](problem)
        assert call is not None
        answer = np.asarray(call().point)
        assert constrained.missed(problem, answer) < 1e-10
        value, start = (float(constrained.whole(problem)(jnp.asarray(x))) for x in (answer, problem.start))
        # They are convex, so what is found is never lower; and the peer comes near.
        assert -1e-10 * abs(problem.best) <= value - problem.best <= 1e-6 * abs(start - problem.best)


def test_an_infeasible_point_is_not_counted_as_solved_however_low():
    row = {"best": 0.0, "f0": 1.0}
    assert constrained.solved(row, {"f": 1e-8, "missed": 0.0})
    assert not constrained.solved(row, {"f": -1.0, "missed": 1e-3})
    assert not constrained.solved(row, {"f": 1e-3, "missed": 0.0})
    assert not constrained.solved(row, {"error": "takes no linear constraint"})
