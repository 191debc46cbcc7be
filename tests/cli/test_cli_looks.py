"""`combinations` and `doctor` say what the library itself says."""

import json
import random

import pytest
from problem_files import thalweg

import thalweg as tw
from thalweg.cli._combinations import YES, as_markdown, find_combinations, lines, reasons, representatives, scheme_names
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry
from thalweg.schemes import AbstractScheme
from thalweg.states import AbstractState

# With `--dist loadgroup` one worker asks for the table, once.
pytestmark = pytest.mark.xdist_group("table of combinations")


@pytest.fixture(scope="module")
def found():
    return find_combinations()


def test_every_cell_is_what_why_unsupported_answers(found):
    by_dim = {dim: representatives(dim) for dim in (1, 2)}
    # One in forty, the same in every run; both answers are among them.
    sample = random.Random(0).sample(found, len(found) // 40)
    for entry in sample:
        choices = by_dim[2 if "2D" in entry.state else 1]
        energy, state, geometry, scheme = (
            choices[role][getattr(entry, role)] for role in ("energy", "state", "geometry", "scheme")
        )
        assert entry.reason == tw.why_unsupported(energy, state, geometry=geometry, scheme=scheme)
    assert {entry.reason is None for entry in sample} == {True, False}


@pytest.mark.parametrize(
    ("role", "base"),
    [("energy", AbstractEnergy), ("state", AbstractState), ("geometry", AbstractGeometry), ("scheme", AbstractScheme)],
)
def test_every_public_class_is_represented(role, base):
    public = {
        name for name in tw.__all__ if isinstance(getattr(tw, name), type) and issubclass(getattr(tw, name), base)
    }
    shown = {type(thing).__name__ for thing in representatives()[role].values()}
    assert public
    assert public <= shown


def test_the_table_holds_each_supported_combination_once(found):
    schemes = scheme_names(found)
    told = [
        (line.state, geometry, energy, scheme)
        for line in lines(found)
        for geometry in line.geometries
        for energy in line.energies
        for scheme, yes in zip(schemes, line.supported, strict=True)
        if yes
    ]
    assert len(told) == len(set(told))
    assert set(told) == {(c.state, c.geometry, c.energy, c.scheme) for c in found if c.reason is None}


def test_the_article_s_six_cases_are_in_the_table(found):
    works = {(c.energy, c.state, c.geometry, c.scheme) for c in found if c.reason is None}
    for scheme in ("Explicit", "Constrained", "Proximal", "Continuous"):
        assert ("any function", "vector", "Euclidean", scheme) in works
    assert ("NegativeLogLikelihood", "Parametric", "FisherRao", "Explicit") in works
    assert ("KL", "GridDensity, 2D", "Wasserstein", "Continuous") in works
    assert ("KL", "GridDensity, 1D", "Wasserstein", "Proximal") in works
    assert ("KL", "Particles", "Wasserstein", "Langevin") in works
    assert ("FDivergence", "Particles with KernelDensity", "Wasserstein", "Continuous") in works
    assert ("any function", "vector", "Wasserstein", "Explicit") not in works


def test_every_gap_has_its_reason(found):
    told = reasons(found)
    assert sum(1 for text in told if text.strip()) == len({c.reason for c in found if c.reason is not None})
    assert any("has no metric at" in text for text in told)


def test_the_command_prints_the_table_as_markdown_and_for_a_terminal(found, monkeypatch):
    monkeypatch.setattr("thalweg.cli._combinations.find_combinations", lambda: found)
    markdown = as_markdown(found)
    assert thalweg("combinations", "--markdown").stdout == markdown + "\n"
    rows = [line.split(" | ") for line in markdown.splitlines()]
    assert {len(row) for row in rows} == {3 + len(scheme_names(found))}
    assert len(rows) == 2 + len(lines(found))
    shown = thalweg("combinations", "--why").stdout
    assert YES in shown
    assert "has no metric at" in shown


def test_doctor_reproduces_a_known_number_and_names_what_is_installed():
    result = thalweg("doctor", "--json")
    assert result.exit_code == 0
    findings = json.loads(result.stdout)
    assert findings["healthy"] is True
    flow = findings["small_flow"]
    assert flow["reached"] == pytest.approx(flow["reference"], abs=flow["tolerance"])
    assert findings["versions"]["thalweg"] == tw.__version__
    assert findings["platform"]["devices"]
    shown = thalweg("doctor").stdout
    assert all(part in shown for part in ("jax", "devices", "precision", "right"))


def test_doctor_says_so_when_a_number_is_wrong(monkeypatch):
    monkeypatch.setattr("thalweg.cli._doctor._TOLERANCE", -1.0)
    result = thalweg("doctor")
    assert result.exit_code == 1
    assert "WRONG" in result.stdout
