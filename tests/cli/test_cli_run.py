"""A run leaves a whole folder; it can be read back, refused, resumed, killed and prolonged without losing a bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem_files import HEAT, LANGEVIN, VECTOR, thalweg, write_problem

import thalweg as tw
from thalweg.cli._run import summary_of

# Long enough to be stopped on its way: some hundred thousand cheap steps, a checkpoint every 50 ms.
LONG = LANGEVIN.replace("num_steps = 20", "num_steps = {num_steps}\ncheckpoint_seconds = 0.05").replace(
    "save_every = 10", "save_every = 5000"
)


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def heat_run(tmp_path_factory):
    """One whole run, report included: its folder and what the command printed."""
    folder = tmp_path_factory.mktemp("heat")
    result = thalweg("run", write_problem(folder, HEAT), "--out", folder / "out", "--json")
    assert result.exit_code == 0, result.output
    return folder / "out", result


def test_a_run_leaves_its_whole_folder(heat_run):
    folder, _ = heat_run
    there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {"problem.toml", "model.py", "beside.py", "path.npz", "path.nc", "report.html", "run.json"} <= there
    assert "figures/overview.png" in there
    assert "checkpoint/manifest.npz" in there
    assert not [name for name in there if "aside" in name]
    assert (folder / "problem.toml").read_text() == HEAT


def test_json_is_all_that_is_printed_and_is_the_record(heat_run):
    folder, result = heat_run
    printed = json.loads(result.stdout)
    assert printed == {"folder": str(folder), **record_of(folder)}
    assert (printed["status"], printed["result"], printed["exit_code"]) == ("done", "successful", 0)
    assert printed["precision"] == "float64"
    assert {"report", "figures", "path", "netcdf"} <= set(printed["files"])
    assert set(printed["inputs"]) == {"model.py", "beside.py"}


def test_the_saved_path_is_the_path_of_the_library(heat_run):
    folder, _ = heat_run
    state = tw.GridDensity.from_function(
        lambda x: jax.numpy.exp(-8.0 * jax.numpy.sum((x - 0.5) ** 2)), tw.Grid(0.0, 1.0, 8)
    )
    path = tw.flow(tw.Entropy(), state, geometry=tw.Wasserstein(), scheme=tw.Continuous(0.01), num_steps=3)
    saved = tw.load(folder / "path.npz")
    assert np.array_equal(saved.final.state.values, path.final.state.values)
    assert np.array_equal(saved.energies, path.energies)
    record = record_of(folder)
    assert record["energies"]["curve"] == [float(value) for value in path.energies]


def test_the_netcdf_file_is_read_by_xarray(heat_run):
    import xarray

    folder, _ = heat_run
    with xarray.open_dataset(folder / "path.nc", engine="h5netcdf") as data:
        assert data.sizes["time"] == 4


def test_the_report_shows_settings_code_and_title(heat_run):
    page = (heat_run[0] / "report.html").read_text()
    assert all(part in page for part in ("A bump that spreads", "GridDensity", "tw.Continuous(step_size=0.01)"))


def test_the_code_in_the_report_is_the_same_run(heat_run, monkeypatch):
    from thalweg.cli._document import read_document
    from thalweg.cli._plan import make_plan, read_run_options

    folder, _ = heat_run
    document = read_document(folder / "problem.toml")
    code = make_plan(document, read_run_options(document)).code()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "model", raising=False)
    names: dict = {}
    exec(code, names)
    assert np.array_equal(names["path"].final.state.values, tw.load(folder / "path.npz").final.state.values)


def test_show_tells_what_the_run_came_to(heat_run):
    folder, _ = heat_run
    shown = thalweg("show", folder)
    assert shown.exit_code == 0
    said = " ".join(shown.stdout.split())
    last = record_of(folder)["energies"]["last"]
    for part in ("A bump that spreads", "3 steps", f"{last:.6g}", "report.html", "█"):
        assert part in said, said
    assert json.loads(thalweg("show", folder, "--json").stdout)["status"] == "done"


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_show_refuses_what_is_no_run(tmp_path, name):
    (tmp_path / "empty").mkdir()
    assert thalweg("show", tmp_path / name).exit_code == 2


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    file = write_problem(tmp_path, VECTOR)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    refused = thalweg("run", file, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "--out" in refused.stderr
    resumed = thalweg("run", file, "--out", tmp_path / "out", "--resume")
    assert resumed.exit_code == 2
    assert "holds no run" in " ".join(resumed.stderr.split())
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_refused_before_the_run(tmp_path):
    file = write_problem(tmp_path, VECTOR)
    refused = thalweg("run", file, "--out", file / "out", "--no-report")
    assert refused.exit_code == 2
    assert "cannot be written" in refused.stderr
    assert thalweg("run", file, "--out", file).exit_code == 2


def test_runs_are_numbered_below_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_problem(tmp_path, VECTOR, "valley.toml")
    for number in (1, 2):
        done = thalweg("run", "valley.toml", "--no-report", "--quiet")
        assert (done.exit_code, done.output.replace("the user's own words\n", "")) == (0, "")
        assert record_of(tmp_path / "runs" / f"valley-{number}")["status"] == "done"
    prolonged = file.read_text().replace("num_steps = 4", "num_steps = 6")
    file.write_text(prolonged)
    assert thalweg("run", "valley.toml", "--no-report", "--quiet", "--resume").exit_code == 0
    assert [record_of(tmp_path / "runs" / f"valley-{n}")["num_steps"] for n in (1, 2)] == [4, 6]
    # x ← x − ¼·2(x − ¼) halves the distance to the minimum at every step.
    state = tw.load(tmp_path / "runs" / "valley-2" / "path.npz").final.state
    assert np.array(state) == pytest.approx(0.25 + np.array([0.75, 1.75]) / 2**6, abs=1e-15)


def test_another_problem_or_another_function_is_not_resumed(tmp_path):
    file = write_problem(tmp_path, VECTOR)
    out = tmp_path / "out"
    assert thalweg("run", file, "--out", out, "--no-report", "--quiet").exit_code == 0
    before = (out / "path.npz").read_bytes()
    again = thalweg("run", file, "--out", out, "--no-report", "--quiet")
    assert again.exit_code == 2
    assert "is not empty" in again.stderr
    file.write_text(VECTOR.replace("0.25", "0.125"))
    other = thalweg("run", file, "--out", out, "--no-report", "--resume")
    assert other.exit_code == 2
    assert "[scheme] differs in step_size" in " ".join(other.stderr.split())
    file.write_text(VECTOR)
    (tmp_path / "beside.py").write_text("CENTRE = 0.5\n")
    (tmp_path / "model.py").write_text((tmp_path / "model.py").read_text() + "\n")
    changed = thalweg("run", file, "--out", out, "--no-report", "--resume")
    assert changed.exit_code == 2
    assert "has changed since the run" in " ".join(changed.stderr.split())
    assert (out / "path.npz").read_bytes() == before


def test_a_damaged_checkpoint_is_refused_and_nothing_is_overwritten(tmp_path):
    file = write_problem(tmp_path, VECTOR)
    out = tmp_path / "out"
    assert thalweg("run", file, "--out", out, "--no-report", "--quiet").exit_code == 0
    manifest = out / "checkpoint" / "manifest.npz"
    manifest.write_bytes(manifest.read_bytes()[:-200])
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    refused = thalweg("run", file, "--out", out, "--no-report", "--resume")
    assert refused.exit_code == 2
    assert "manifest.npz" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 8
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before


def test_a_numerical_failure_ends_with_code_1_and_keeps_the_path_so_far(tmp_path):
    # Explicit diffusion with forty times the stable step size turns negative.
    text = HEAT.replace('"Continuous"', '"Explicit"').replace("0.01", "0.3").replace("num_steps = 3", "num_steps = 50")
    result = thalweg("run", write_problem(tmp_path, text), "--out", tmp_path / "out", "--no-report", "--json")
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert (record["status"], record["result"]) == ("failed", "negative_density")
    assert "made the density negative" in result.stderr
    path = tw.load(tmp_path / "out" / "path.npz")
    assert path.result == tw.RESULTS.negative_density
    assert bool((path.final.state.values >= 0).all())


def test_a_package_that_writes_the_results_is_missed_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    file = write_problem(tmp_path, VECTOR)
    refused = thalweg("run", file, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "`matplotlib`" in refused.stderr
    assert "pip install 'thalweg[cli]'" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert thalweg("run", file, "--out", tmp_path / "out", "--no-report", "--quiet").exit_code == 0


def test_single_precision_is_used_where_it_is_asked_for(tmp_path):
    text = VECTOR.replace("num_steps = 4", 'num_steps = 4\nprecision = "float32"')
    result = thalweg("run", write_problem(tmp_path, text), "--out", tmp_path / "out", "--no-report")
    assert result.exit_code == 0
    assert "Computing in float32" in result.stderr
    assert tw.load(tmp_path / "out" / "path.npz").final.state.dtype == np.float32
    # The rest of the process computes as before.
    assert jax.numpy.zeros(()).dtype == np.float64


def test_a_named_problem_runs_by_its_name_and_shows_its_answer(tmp_path):
    result = thalweg("run", "quadratic", "--out", tmp_path / "out", "--no-report", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["reference"]
    assert [row["verdict"] for row in rows] == ["met", "met", "met"]
    assert [row["reference"] for row in rows][0] == pytest.approx(0, abs=1e-12)
    assert thalweg("problems", "quadratic").stdout == (tmp_path / "out" / "problem.toml").read_text()


def start(file: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "thalweg", "run", str(file), "--out", str(out), "--no-report", "--json", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def wait_for(file: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 100
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.02)


def test_a_killed_run_resumes_to_the_same_bits_and_ctrl_c_saves_the_path_so_far(tmp_path):
    file = write_problem(tmp_path, LONG.replace("{num_steps}", "100_000"))
    killed = start(file, tmp_path / "killed")
    wait_for(tmp_path / "killed" / "checkpoint" / "segment-000002.npz", killed)
    killed.kill()
    killed.communicate()
    assert record_of(tmp_path / "killed")["status"] == "running"
    assert "--resume" in thalweg("show", tmp_path / "killed").stdout

    # Both in this process, which computes with the same XLA flags as those that it starts.
    for arguments in (["--out", tmp_path / "whole"], ["--out", tmp_path / "killed", "--resume"]):
        done = thalweg("run", file, *arguments, "--no-report", "--quiet")
        assert done.exit_code == 0, done.output
    first, second = (tw.load(tmp_path / name / "path.npz") for name in ("whole", "killed"))
    assert int(second.final.num_steps) == 100_000
    for a, b in zip(jax.tree.leaves(first.states), jax.tree.leaves(second.states), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(first.final.state.positions, second.final.state.positions)

    # More steps than any machine takes in a minute; the same folder goes on from its end.
    file.write_text(LONG.replace("{num_steps}", "2_000_000_000"))
    segments = len(list((tmp_path / "killed" / "checkpoint").glob("segment-*.npz")))
    endless = start(file, tmp_path / "killed", "--resume")
    wait_for(tmp_path / "killed" / "checkpoint" / f"segment-{segments + 2:06d}.npz", endless)
    endless.send_signal(signal.SIGINT)
    stdout, stderr = endless.communicate(timeout=60)
    assert endless.returncode == 130, stderr
    record = json.loads(stdout)
    assert (record["status"], record["result"]) == ("interrupted", "interrupted")
    path = tw.load(tmp_path / "killed" / "path.npz")
    assert int(path.final.num_steps) == record["num_steps"] > 100_000
    assert path.result == tw.RESULTS.interrupted


def test_no_balance_is_summed_up_where_steps_follow_no_flow_in_time():
    options = {"geometry": tw.Euclidean(), "num_steps": 3, "throw": False}
    free, limited = (
        summary_of(tw.flow(lambda x: jnp.sum(x**2), jnp.ones(2), scheme=scheme, **options))
        for scheme in (tw.LinearlyImplicit(), tw.LinearlyImplicit(0.1))
    )
    assert "energy_balance" not in free
    assert "energy_balance" in limited
