"""Problems by name."""

import importlib.resources
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from thalweg import problems

NAMES = problems.names()


@pytest.mark.parametrize("name", NAMES)
def test_a_problem_is_found_under_its_own_name_with_a_source(name):
    problem = problems.get(name)
    assert problem.name == name
    assert len(problem.source) > 5
    assert callable(problem.energy())


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(problems.get(n), problems.DensityProblem)])
def test_the_functions_of_a_density_problem_take_one_point_and_return_one_number_of_its_precision(name):
    problem = problems.get(name)
    for dtype in (jnp.float32, jnp.float64):
        point = jax.ShapeDtypeStruct((problem.dim,), dtype)
        functions = [
            problem.potential,
            problem.interaction_kernel,
            problem.initial_density,
            problem.stationary_log_density,
        ]
        if problem.exact is not None:
            functions.append(lambda x: problem.exact(0.1, x))
        if problem.exact_cumulative is not None:
            functions.append(lambda x: problem.exact_cumulative(0.1, x))
        for value in [jax.eval_shape(fn, point) for fn in functions if fn is not None]:
            assert (value.shape, value.dtype) == ((), dtype)


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(problems.get(n), problems.TargetProblem)])
def test_a_target_problem_names_what_its_reference_names(name):
    problem = problems.get(name)
    quantities = jax.eval_shape(problem.constrain, jax.ShapeDtypeStruct((problem.dim,), jnp.float64))
    assert set(quantities) == set(problem.reference)
    for key, value in quantities.items():
        assert value.shape == problem.reference[key].mean.shape == problem.reference[key].sd.shape
    log_density = jax.eval_shape(problem.log_density, jax.ShapeDtypeStruct((problem.dim,), jnp.float32))
    assert (log_density.shape, log_density.dtype) == ((), jnp.float32)
    assert problem.target().dim == problem.dim


def test_parameters_are_passed_on():
    assert problems.get("double_well", dim=2).dim == 2
    with pytest.raises(TypeError, match="depth"):
        problems.get("double_well", depth=2)


@pytest.mark.parametrize(
    ("wrong", "right"), [("double-well", "double_well"), ("Misra1a", "misra1a"), ("banan", "banana")]
)
def test_an_unknown_name_is_answered_with_the_nearest_one(wrong, right):
    with pytest.raises(ValueError, match=f"Did you mean '{right}'") as caught:
        problems.get(wrong)
    assert len(str(caught.value).splitlines()) <= 5


def test_a_name_like_no_other_is_answered_with_where_to_look():
    with pytest.raises(ValueError, match=r"problems\.names\(\)"):
        problems.get("zzzz")


def test_every_data_file_is_named_with_its_licence_and_is_plain_text():
    folder = pathlib.Path(str(importlib.resources.files("thalweg.problems"))) / "data"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert {f.stem for f in (folder / "nist").iterdir()} == set(problems.DATASETS)
    assert {f.name for f in folder.iterdir()} == {"README.md", "eight_schools.json", "nist"}
    for words in ("eight_schools.json", "nist/*.dat", "public domain", "BSD 3-Clause", "Copyright (c)"):
        assert words in readme


def test_importing_the_problems_opens_no_data_file():
    code = (
        "import sys, jax, equinox; opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "import thalweg.problems\n"
        "assert any('problems' in f for f in opened) and not [f for f in opened if 'problems/data' in f]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
