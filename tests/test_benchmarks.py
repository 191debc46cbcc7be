"""The benchmarks measure what they say: wrong points are not counted as solved, and what hangs is ended."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from benchmarks import _grid_orders, _grid_peers, _minimisers, constrained, cutest, fokker_planck, grid, nist, pinn
from benchmarks import _harness as harness
from benchmarks import _rotated_well as well


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


def smallest(solver):
    return next(run for run in fokker_planck.SMALLEST if run[0] == solver)


def test_the_solution_in_the_rotated_well_is_the_product_of_its_two_factors():
    # Before the two are extrapolated.
    assert well.accuracy() < 3e-7
    # Along the valley, against the library in one dimension: an error of h², and 2e-4 with 200 cells.
    grid_1d = tw.Grid(-3.0, 3.0, 800)
    start = tw.GridDensity.from_function(lambda u: jnp.exp(-((u[0] - well.START_U) ** 2) / 0.08), grid_1d)
    energy = tw.PotentialEnergy(lambda u: 2 * (u[0] ** 2 - 1) ** 2) + tw.Entropy()
    path = tw.flow(energy, start, geometry=tw.Wasserstein(), scheme=tw.Continuous(1.0), final_time=1.0)
    exact = well.along_u()(np.asarray(grid_1d.centres[:, 0]))
    assert np.sum(np.abs(path.final.state.values - exact)) * grid_1d.cell_volume < 2e-5
    # Across it, closed form 1; the walls of the box leave 3e-6 of the mass out, at v up to 2.3.
    cells = well.cells(128)
    volume = cells.spacing**2
    _, v = well.rotated(cells.x, cells.y)
    np.testing.assert_allclose(np.sum(cells.solution) * volume, 1.0, atol=5e-6)
    np.testing.assert_allclose(np.sum(cells.solution * v) * volume, 0.5 * np.exp(-4), atol=1e-5)
    variance = 0.25 + (0.04 - 0.25) * np.exp(-8)
    second = np.sum(cells.solution * v**2) * volume
    np.testing.assert_allclose(second, variance + 0.25 * np.exp(-8), atol=2e-5)
    # Its derivatives are those that the peers are given.
    e = 1e-5
    for axis, slope in enumerate(well.gradient(cells.x, cells.y)):
        dx, dy = (e, 0) if axis == 0 else (0, e)
        ahead, behind = (well.potential(cells.x + s * dx, cells.y + s * dy) for s in (1, -1))
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * e), rtol=1e-6, atol=1e-4)


def test_the_smallest_fokker_planck_benchmark_runs_and_a_wrong_answer_shows(monkeypatch):
    rows = {}
    for solver in (_grid_peers.OURS, "SciPy loop"):
        run = smallest(solver)
        rows[fokker_planck.key(*run)] = fokker_planck.measure(*run, lambda phase: None)
    mine, theirs = rows.values()
    # Second order in space, and exact in time: the loop has an error in time too.
    assert mine["error"] < theirs["error"] < 3e-3
    assert mine["error"] < 1e-3
    assert mine["mass"] < 1e-13
    assert mine["least"] >= 0
    assert mine["drift"] < 1e-12
    assert 0 < mine["cpu"] < mine["first"]

    def too_short(cells):
        return lambda values: _grid_peers.Outcome(values)

    monkeypatch.setitem(fokker_planck.SOLVERS, "idle", too_short)
    idle = fokker_planck.measure("idle", 64, {}, lambda phase: None)
    assert idle["error"] > 0.5
    rows["idle"] = idle
    rows["absent"] = {"solver": "absent", "n": 64, "setting": {}, "failed": "ModuleNotFoundError"}
    text = "\n".join(fokker_planck.report(rows))
    assert "**thalweg**" in text
    assert "absent: ModuleNotFoundError" in text
    assert list(fokker_planck.targets(rows)) == []


@pytest.mark.parametrize(("solver", "package"), [("fplanck", "fplanck"), ("FiPy", "fipy")])
def test_a_peer_solves_the_same_problem(solver, package):
    pytest.importorskip(package)
    _, n, setting = smallest(solver)
    cells = well.cells(n)
    call = _grid_peers.SOLVERS[solver](cells, **setting)
    assert cells.error(call(cells.start).values) < 3e-3


def test_an_order_is_the_slope_between_neighbours():
    row = {"sizes": [0.2, 0.1, 0.05], "errors": [4e-3, 1e-3, 5e-4], "cpu": 0.0}
    np.testing.assert_allclose(_grid_orders.orders(row), [2.0, 1.0], rtol=1e-12)
    name = "Ornstein–Uhlenbeck, 2D, default"
    ((_, stated, _, met),) = _grid_orders.targets({name: row})
    assert (stated, met) == ("2", False)


def test_every_part_of_the_grid_benchmark_has_a_smallest_size():
    parts = {part for part, _, _ in grid.tasks(small=True)}
    assert parts == set(grid.PARTS)
    assert len(grid.tasks(small=True)) < len(grid.tasks())
