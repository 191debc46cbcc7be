"""Every mistake in a problem file is said in at most five lines: the file, the table, the name, and what to do."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from problem_files import HEAT, LANGEVIN, VECTOR, thalweg, write_problem

import thalweg as tw
from thalweg.cli._document import read_document
from thalweg.cli._folder import neighbours
from thalweg.cli._plan import make_plan, read_run_options


def plan_of(file, seed=None):
    document = read_document(file)
    return make_plan(document, read_run_options(document, seed))


def complaint(file):
    """What the command says to a problem file that it refuses; nothing may be left behind."""
    before = sorted(file.parent.rglob("*.json"))
    result = thalweg("run", file, "--out", file.parent / "out", "--quiet")
    assert result.exit_code == 2, result.output
    assert not (file.parent / "out").exists()
    assert sorted(file.parent.rglob("*.json")) == before
    assert 1 <= len(result.stderr.strip().splitlines()) <= 5
    assert "Traceback" not in result.output
    assert result.stdout in ("", "the user's own words\n")
    return " ".join(result.stderr.split())


# What is changed in which problem, and what must then be said.
MISTAKES = {
    "a key misspelt": (HEAT, "step_size", "step_sise", ["[scheme]", "`Continuous` has no key `step_sise`"]),
    "a type misspelt": (HEAT, '"Wasserstein"', '"Waserstein"', ["[geometry]", "Did you mean `Wasserstein`?"]),
    "a type in the wrong table": (HEAT, '"Wasserstein"', '"Entropy"', ["[geometry]", "`Entropy` is an energy"]),
    "a table misspelt": (HEAT, "[geometry]", "[geometri]", ["[geometri]", "Did you mean `geometry`?"]),
    "a table missing": (HEAT, '[geometry]\ntype = "Wasserstein"', "", ["[geometry] is missing"]),
    "a type missing": (HEAT, 'type = "Continuous"', "", ["[scheme]", "needs a `type`", "Explicit"]),
    "a key missing": (HEAT, "step_size = 0.01", "", ["[scheme]", "`Continuous` needs `step_size`"]),
    "a key missing in a table within": (HEAT, "upper = 1.0", "", ["[state.grid]", "`Grid` needs `upper`"]),
    "a key misspelt in a table within": (HEAT, "boundary", "boundry", ["[state.grid]", "Did you mean `boundary`?"]),
    "a boundary misspelt": (HEAT, '"NoFlux"', '"NoFlow"', ["[state.grid.boundary]", "Did you mean `NoFlux`?"]),
    "a text for a number": (HEAT, "0.01", '"small"', ["[scheme]", "`step_size` must be a number", "'small'"]),
    "a fraction for a count": (HEAT, "shape = 8", "shape = 8.5", ["[state.grid]", "`shape` must be a whole number"]),
    "a number for a table": (HEAT, '[state.grid]', "grid = 3\n[state.grids]", ["[state]", "grid"]),
    "a value out of range": (HEAT, "0.01", "-0.01", ["[scheme]", "`step_size`", "must be a positive finite number"]),
    "a grid turned round": (HEAT, "upper = 1.0", "upper = -1.0", ["[state.grid]", "lower < upper"]),
    "both ends": (HEAT, "num_steps = 3", "num_steps = 3\nfinal_time = 1.0", ["[run]", "both are given"]),
    "no end": (HEAT, "num_steps = 3", "", ["[run]", "neither is given"]),
    "a key of the run misspelt": (HEAT, "num_steps", "num_step", ["[run]", "Did you mean `num_steps`?"]),
    "no steps": (HEAT, "num_steps = 3", "num_steps = 0", ["[run]", "`num_steps`", "at least 1"]),
    "a precision that is none": (HEAT, "num_steps = 3", 'num_steps = 3\nprecision = "half"', ["[run]", "float32"]),
    "not TOML": (HEAT, "shape = 8", "shape = ", ["not valid TOML", "line"]),
    "an unquoted name": (HEAT, '"Entropy"', "Entropy", ["not valid TOML", "quotes"]),
    "a missing function": (HEAT, "model.py:bump", "model.py:bumb", ["[state]", "Did you mean `bump`?"]),
    "a missing file": (HEAT, "model.py:bump", "modle.py:bump", ["[state]", "there is no file", "`model.py`"]),
    "a missing module": (HEAT, "model.py:bump", "modelling:bump", ["no module named `modelling`", "model.py:function"]),
    "no function named": (HEAT, "model.py:bump", "model.py", ["[state]", '"file.py:function"']),
    "a number for a function": (HEAT, "model.py:bump", "model.py:NUMBER", ["[state]", "must be a function"]),
    "an unknown generator": (
        LANGEVIN.replace('"KL"', '"FDivergence"\ngenerator = "forward_lk"'),
        "",
        "",
        ["[energy]", "Did you mean `forward_kl`?"],
    ),
    "a log density with two values": (LANGEVIN, "log_normal", "two_values", ["[energy.target]", "one real number"]),
    "an energy that is not finite": (VECTOR, ":bowl", ":nothing", ["`energy` is not finite at `initial_state`"]),
    "an energy with two values": (VECTOR, ":bowl", ":two_values", ["`energy`"]),
    "a start that is not finite": (VECTOR, "[1.0, 2.0]", "[nan, 2.0]", ["`initial_state` must be finite"]),
    "rows of unequal length": (VECTOR, "[1.0, 2.0]", "[[1.0, 2.0], [3.0]]", ["[state]", "rows of equal length"]),
    "a missing data file": (VECTOR, "[1.0, 2.0]", '"point.csv"', ["[state]", "there is no file", "`points.csv`"]),
    "a missing column": (VECTOR, "[1.0, 2.0]", '"points.csv:z"', ["[state]", "no column `z`"]),
    "an unknown problem": (
        '[problem]\nname = "duoble_well"\n' + HEAT[HEAT.index("[scheme]") :],
        "",
        "",
        ["[problem]", "Did you mean `double_well`?"],
    ),
    "an unknown parameter of a problem": (
        '[problem]\nname = "double_well"\ntemprature = 1.0\n' + HEAT[HEAT.index("[scheme]") :],
        "",
        "",
        ["[problem]", "Did you mean `temperature`?"],
    ),
    "choices that do not fit": (HEAT, '"Wasserstein"', '"Euclidean"', ["`Euclidean` has no metric at GridDensity"]),
    "noise without an entropy": (
        'energy.type = "PotentialEnergy"\nenergy.potential = "model.py:bowl"\n' + LANGEVIN[LANGEVIN.index("[state]") :],
        "",
        "",
        ["this energy has no entropy"],
    ),
    "tolerances without answers": (HEAT + "[tolerance]\nmean = 0.1\n", "", "", ["[tolerance]", "named problem"]),
    "a scale that is none": (
        HEAT.replace('[energy]\ntype = "Entropy"', '[[energy.terms]]\ntype = "Entropy"\nscale = "half"'),
        "",
        "",
        ["[energy.terms, number 1]", "`scale` must be a number"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_table_and_the_right_name(tmp_path, mistake):
    text, right, wrong, said = MISTAKES[mistake]
    assert right in text
    file = write_problem(tmp_path, text.replace(right, wrong, 1) if right else text)
    message = complaint(file)
    missing = [part for part in ["problem.toml", *said] if part not in message]
    assert not missing, message


def test_a_missing_file_is_named_with_its_neighbour(tmp_path):
    write_problem(tmp_path, HEAT)
    assert "`problem.toml`" in complaint(tmp_path / "problen.toml")


def test_an_unknown_built_in_problem_is_named_with_the_nearest():
    result = thalweg("run", "rosenbrok")
    assert result.exit_code == 2
    assert "Did you mean `rosenbrock`?" in result.stderr


def test_reading_a_problem_runs_no_code_of_the_user(tmp_path):
    file = write_problem(tmp_path, HEAT)
    (tmp_path / "model.py").write_text("raise SystemExit('this file was run')\n")
    plan = plan_of(file)
    assert [function.reference for function in plan.functions] == ["model.py:bump"]


def test_a_function_is_named_before_its_file_is_run(tmp_path):
    file = write_problem(tmp_path, HEAT)
    (tmp_path / "model.py").write_text("raise RuntimeError('half way')\n")
    result = thalweg("run", file, "--out", tmp_path / "out")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert said.index("Importing model.py:bump (runs the code in") < said.index("RuntimeError: half way")


def test_what_is_imported_beside_a_function_is_known_and_the_library_is_not_taken_for_it(tmp_path):
    plan_of(write_problem(tmp_path, HEAT)).build()
    assert set(neighbours(tmp_path)) == {"model.py", "beside.py"}
    # Other tests of this process may have been imported from there; the library itself is no neighbour.
    found = neighbours(Path(tw.__file__).parent.parent)
    assert [name for name in found if name.startswith("thalweg")] == []


def test_the_four_choices_are_the_objects_that_the_tables_name(tmp_path):
    choices = plan_of(write_problem(tmp_path, HEAT)).build()
    grid = tw.Grid(0.0, 1.0, 8)
    assert isinstance(choices.energy, tw.Entropy)
    assert isinstance(choices.geometry, tw.Wasserstein)
    assert (choices.scheme.step_size, choices.options) == (0.01, {"num_steps": 3})
    expected = tw.GridDensity.from_function(lambda x: jnp.exp(-8.0 * jnp.sum((x - 0.5) ** 2)), grid)
    assert choices.state.grid == grid
    assert jnp.array_equal(choices.state.values, expected.values)


def test_energies_add_with_their_scales(tmp_path):
    terms = """[[energy.terms]]
type = "PotentialEnergy"
potential = "model.py:bowl"
[[energy.terms]]
scale = 0.5
type = "Entropy"
"""
    choices = plan_of(write_problem(tmp_path, HEAT.replace('[energy]\ntype = "Entropy"', terms))).build()
    state = choices.state
    by_hand = tw.PotentialEnergy(lambda x: jnp.sum((x - 0.25) ** 2))(state) + 0.5 * tw.Entropy()(state)
    assert float(choices.energy(state)) == pytest.approx(float(by_hand), rel=1e-14)


def test_particles_are_drawn_with_the_seed(tmp_path):
    file = write_problem(tmp_path, LANGEVIN)
    drawn = [np.asarray(plan_of(file, seed).build().state.positions) for seed in (None, 3, 4)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])


def test_a_list_of_boundaries_is_one_for_each_axis(tmp_path):
    plane = HEAT.replace("0.0", "[0.0, 0.0]", 1).replace("1.0", "[1.0, 2]", 1).replace("= 8", "= [8, 6]")
    file = write_problem(tmp_path, plane.replace('"NoFlux"', '["NoFlux", "Periodic"]'))
    assert plan_of(file).build().state.grid == tw.Grid((0.0, 0.0), (1.0, 2.0), (8, 6), (tw.NoFlux(), tw.Periodic()))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"points.csv"', [[0, 1], [1, 3], [2, 5]]),
        ('"points.csv:y"', [1, 3, 5]),
        ('"numbers.npy"', [4, 5]),
        ('{ a = [1.0], b = "points.csv:x" }', {"a": [1], "b": [0, 1, 2]}),
    ],
)
def test_vectors_come_from_numbers_and_files(tmp_path, value, expected):
    np.save(tmp_path / "numbers.npy", np.array([4.0, 5.0]))
    state = plan_of(write_problem(tmp_path, VECTOR.replace("[1.0, 2.0]", value))).state.value()
    for name, numbers in expected.items() if isinstance(expected, dict) else [(None, expected)]:
        assert np.array_equal(np.asarray(state if name is None else state[name]), np.asarray(numbers, float))


def test_a_regression_is_spelt_in_tables(tmp_path):
    text = """
[energy]
type = "NegativeLogLikelihood"
outputs = "points.csv:y"
[state]
type = "Parametric"
params = [0.0, 0.0]
family = { type = "Regression", model = "model.py:line", inputs = "points.csv:x", likelihood = "Normal" }
[geometry]
type = "FisherRao"
[scheme]
type = "Explicit"
step_size = 1.0
[run]
num_steps = 1
"""
    choices = plan_of(write_problem(tmp_path, text)).build()
    # One step of Gauss-Newton solves a linear regression: y = 1 + 2x.
    path = tw.flow(choices.energy, choices.state, geometry=choices.geometry, scheme=choices.scheme, num_steps=1)
    assert path.final.state.params == pytest.approx([1.0, 2.0], abs=1e-12)


def test_every_geometry_and_scheme_of_the_library_may_be_named():
    from thalweg.cli._catalogue import ROLES, candidates
    from thalweg.geometries import AbstractGeometry
    from thalweg.schemes import AbstractScheme

    for role, base in (("geometry", AbstractGeometry), ("scheme", AbstractScheme)):
        public = {
            name for name in tw.__all__ if isinstance(getattr(tw, name), type) and issubclass(getattr(tw, name), base)
        }
        assert public
        assert set(candidates(ROLES[role])) == public
