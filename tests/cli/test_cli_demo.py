"""The demo's table is computed from its runs: verdicts follow from errors and tolerances, and decide the exit code."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from problem_files import thalweg
from rich.console import Console

import thalweg as tw
from thalweg.cli import _run
from thalweg.cli._demo import compare_paths, demo_documents, gather, run_demo
from thalweg.cli._document import parse_document
from thalweg.cli._errors import ExitCode, UsageError
from thalweg.cli._plan import make_plan, read_run_options
from thalweg.cli._reference import reference_rows
from thalweg.cli._rows import TOLERANCES, Row
from thalweg.cli._run import Outcome


def shortened(name, *changes):
    document = demo_documents()[name]
    text = document.text
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_document(text, name=document.name, stem=name, folder=Path.cwd())


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory):
    """A regression to its end, and the double well for a moment: some answers are reached and some are not."""
    moment = (
        ("shape = 128", "shape = 16"),
        ("final_time = 40.0", "final_time = 0.4"),
        ("save_every = 4", "save_every = 2"),
    )
    documents = {
        "misra1a": shortened("misra1a"),
        "fokker_planck": shortened("fokker_planck", *moment),
        "jko": shortened("jko", *moment),
    }
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        # The pictures have tests of their own.
        patch.setattr(_run, "report", lambda *arguments: None)
        yield run_demo(documents, out / "demo", quiet=True, console=Console()), documents, out / "demo"


def test_rows_that_are_met_and_rows_that_are_not_are_told_apart(short_demo):
    result, documents, _ = short_demo
    verdicts = {title: [row.verdict for row in rows] for title, rows in result.groups.items()}
    assert verdicts[documents["misra1a"].title] == ["met", "met"]
    assert "NOT MET" in verdicts[documents["fokker_planck"].title]
    assert result.exit_code is ExitCode.FAILED
    assert result.trouble == {}


def test_the_certified_parameters_are_reached_to_nine_digits(short_demo):
    result, documents, _ = short_demo
    rows = result.groups[documents["misra1a"].title]
    assert [row.reference for row in rows] == [2.3894212918e02, 5.5015643181e-04]
    assert [row.reached for row in rows] == pytest.approx([2.3894212918e02, 5.5015643181e-04], rel=1e-9)


def test_the_two_paths_are_compared_at_the_times_that_both_have(short_demo):
    result, _, _ = short_demo
    first, second = (result.outcomes[name].path for name in ("fokker_planck", "jko"))
    assert np.allclose(first.times, second.times, atol=1e-12)
    volume = first.states.grid.cell_volume
    by_hand = (np.abs(np.asarray(first.states.values) - np.asarray(second.states.values)).sum(axis=1) * volume).max()
    row = compare_paths(first, second)
    assert row.error == pytest.approx(by_hand, rel=1e-12)
    assert 0 < row.error < row.tolerance
    assert compare_paths(first, first).error == 0


def test_an_earlier_demo_is_replaced_and_anything_else_is_refused(short_demo, tmp_path, monkeypatch):
    result, documents, out = short_demo
    monkeypatch.setattr(_run, "report", lambda *arguments: None)
    again = run_demo({"misra1a": documents["misra1a"]}, out, quiet=True, console=Console())
    assert again.exit_code is ExitCode.DONE
    assert json.loads((out / "demo.json").read_text())["exit_code"] == 0
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="no earlier demo"):
        run_demo({"misra1a": documents["misra1a"]}, tmp_path, quiet=True, console=Console())
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_that_fails_or_stops_decides_the_exit_code(short_demo):
    result, documents, _ = short_demo
    good = result.outcomes["misra1a"]
    titles = {"misra1a": documents["misra1a"]}
    assert gather(titles, {"misra1a": good}, 1.0).exit_code is ExitCode.DONE
    failed = dataclasses.replace(good, exit_code=ExitCode.FAILED)
    assert gather(titles, {"misra1a": failed}, 1.0).exit_code is ExitCode.FAILED
    stopped = dataclasses.replace(good, exit_code=ExitCode.INTERRUPTED)
    assert gather(titles, {"misra1a": stopped}, 1.0).exit_code is ExitCode.INTERRUPTED
    empty = Outcome({"message": "fine"}, ExitCode.DONE, Path("x"))
    assert gather(titles, {"misra1a": empty}, 1.0).exit_code is ExitCode.FAILED
    unreported = dataclasses.replace(good, record={**good.record, "report_error": "no space left"})
    assert gather(titles, {"misra1a": unreported}, 1.0).exit_code is ExitCode.FAILED


def test_the_table_fits_eighty_columns(short_demo):
    from io import StringIO

    from thalweg.cli._demo import print_demo

    text = StringIO()
    print_demo(Console(file=text, width=80), dataclasses.replace(short_demo[0], outcomes={}))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("238.94212918" in line and "11.0 ≥ 9 digits" in line and "met" in line for line in lines)
    assert any("NOT MET" in line for line in lines)


def test_every_shipped_problem_file_is_understood():
    documents = demo_documents()
    assert set(documents) == {"eight_schools", "misra1a", "nelson", "rat43", "mgh09", "fokker_planck", "jko"}
    for document in documents.values():
        plan = make_plan(document, read_run_options(document))
        assert plan.title == document.title
        assert plan.problem is not None
    fokker_planck, jko = documents["fokker_planck"].tables, documents["jko"].tables
    # Fokker-Planck becomes JKO by one argument.
    assert fokker_planck.pop("scheme") == {"type": "Continuous", "step_size": 0.05}
    assert jko.pop("scheme") == {"type": "Proximal", "step_size": 0.05}
    assert fokker_planck == jko


@pytest.mark.parametrize(
    ("row", "met", "error"),
    [
        (Row("a", 1.0, 1.1, 0.1, 0.1, "absolute"), True, "0.1 ≤ 0.1"),
        (Row("a", 1.0, 1.2, 0.2, 0.1, "sd"), False, "0.2 > 0.1 sd"),
        (Row("a", 1.0, 1.0, 9.5, 9.0, "digits"), True, "9.5 ≥ 9 digits"),
        (Row("a", 1.0, 1.0, 3.0, 9.0, "digits"), False, "3.0 < 9 digits"),
        (Row("a", float("nan"), 1.0, float("nan"), 0.1, "absolute"), False, "nan > 0.1"),
        (Row("a", float("nan"), 1.0, float("nan"), 9.0, "digits"), False, "nan < 9 digits"),
    ],
)
def test_a_verdict_follows_from_error_and_tolerance(row, met, error):
    assert row.met is met
    assert row.cells["error"] == error
    assert row.verdict == ("met" if met else "NOT MET")
    assert row.for_report()[-1] == ("within" if met else "not within")


def test_moments_of_particles_are_compared_with_those_of_the_target():
    problem = tw.problems.gaussian()
    positions = problem.sample(jax_key(0), 4000)
    shifted = positions + 0.5
    for points, met in ((positions, True), (shifted, False)):
        path = tw.flow(
            tw.PotentialEnergy(lambda x: 0.0 * x[0]),
            tw.Particles(points),
            geometry=tw.Wasserstein(),
            scheme=tw.Explicit(1.0),
            num_steps=1,
        )
        rows = reference_rows(problem, path, tw.Wasserstein(), tw.Explicit(1.0), TOLERANCES)
        means = [row for row in rows if row.quantity.endswith("mean")]
        assert len(rows) == 4
        assert all(row.met is met for row in means)
        # 4000 draws give a standard deviation to about 1 per cent (four standard errors: 4.5).
        assert all(row.error < 0.045 for row in rows if row.quantity.endswith("sd"))


def jax_key(seed):
    import jax

    return jax.random.key(seed)


def test_problems_are_listed_with_what_they_are():
    listed = thalweg("problems").stdout
    assert all(name in listed for name in tw.problems.names())
    assert "$" not in listed
