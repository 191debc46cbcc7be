"""A path as labelled arrays says what every axis is, and survives the way to a file and back."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from resumable import run

import thalweg as tw
from thalweg import io, likelihoods
from thalweg._saves import Saves
from thalweg.io import _atomic

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")


def test_a_grid_density_lies_over_its_cell_centres():
    grid = tw.Grid((-1.0, 0.0), (1.0, 3.0), (4, 3))
    state = tw.GridDensity.from_function(lambda x: jnp.exp(-jnp.sum(x**2)), grid)
    path = tw.flow(tw.Entropy(), state, geometry=tw.Wasserstein(), scheme=tw.Explicit(0.01), num_steps=2)
    data = path.to_xarray()
    assert data["density"].dims == ("time", "x", "y")
    assert np.array_equal(data["density"], path.states.values)
    assert data["x"].values == pytest.approx([-0.75, -0.25, 0.25, 0.75])
    assert data["y"].values == pytest.approx([0.5, 1.5, 2.5])
    assert data["time"].values == pytest.approx([0, 0.01, 0.02])
    assert np.array_equal(data["energy"], path.energies)
    assert np.array_equal(data["dissipation_rate"], path.dissipation_rates)
    assert np.array_equal(data["distance_squared"], path.distances_squared)
    # The mass of each save, by names alone.
    mass = data["density"].sum(("x", "y")) * data["x"].attrs["spacing"] * data["y"].attrs["spacing"]
    assert mass.values == pytest.approx(1.0)


def test_a_run_says_how_it_ended_and_what_was_chosen():
    path = run("grid", num_steps=4)
    data = path.to_xarray()
    assert data.attrs["message"] == path.message
    assert json.loads(data.attrs["stats"]) == path.stats
    assert data.attrs["num_steps"] == 4
    assert data.attrs["state"] == "GridDensity"
    assert data.attrs["thalweg"] == tw.__version__
    for variable in data.variables.values():
        assert variable.attrs.get("long_name") or variable.dims[0] in ("particle", "dim")


def test_particles_have_an_axis_of_particles_and_one_of_coordinates():
    path = run("particles", num_steps=6)
    data = path.to_xarray()
    assert data["position"].dims == ("time", "particle", "dim")
    assert np.array_equal(data["position"], path.states.positions)
    assert np.array_equal(data["moments_second"], path.measurements["moments"]["second"])
    assert np.array_equal(data["regular_energy"], path.measurements["regular_energy"])
    assert "energy" not in data, "it has no value for particles without a density model"
    assert "energies" in json.loads(data.attrs["unavailable"])


def made(states: Any, **parts: Any) -> tw.Path:
    """A path of two saves, without a run."""
    saves = {"times": jnp.asarray([0.0, 1.0]), "states": states, "records": {}, "measurements": {}}
    values = {
        "result": tw.RESULTS.successful,
        "final": run("backtracking", num_steps=1).final,
        **parts,
    }
    given = {name: values.pop(name, value) for name, value in saves.items()}
    return tw.Path(saves=Saves(**given), **values)


def test_weights_gaussians_and_parameters_have_their_own_variables():
    weighted = tw.Particles(jnp.zeros((2, 3, 1)), jnp.log(jnp.full((2, 3), 1 / 3)))
    assert made(weighted).to_xarray()["log_weight"].dims == ("time", "particle")
    gaussian = tw.Gaussian(jnp.zeros((2, 2)), jnp.broadcast_to(jnp.eye(2), (2, 2, 2)))
    data = made(gaussian).to_xarray()
    assert data["mean"].dims == ("time", "dim")
    assert data["covariance"].dims == ("time", "dim", "dim_other")
    params = {"mean": jnp.zeros(2), "log_scale": jnp.ones(2)}
    data = made(tw.Parametric(params, likelihoods.NormalMeanScale())).to_xarray()
    assert data["params_mean"].dims == data["params_log_scale"].dims == ("time",)
    assert "params" in made(tw.Parametric(jnp.zeros((2, 4)), likelihoods.Normal())).to_xarray()


def test_a_vector_is_one_variable_and_a_tree_one_for_each_leaf():
    assert made(jnp.zeros((2, 3))).to_xarray()["state"].dims == ("time", "state_axis")
    assert made(jnp.zeros((2, 3, 4))).to_xarray()["state"].dims == ("time", "state_axis0", "state_axis1")
    tree = {"layers": [{"w-1": jnp.zeros((2, 3))}, {"b": jnp.zeros(2, jnp.bfloat16)}]}
    data = made(tree).to_xarray()
    assert data["state_layers_0_w_1"].shape == (2, 3)
    assert data["state_layers_1_b"].dims == ("time",)


def test_a_measurement_with_a_taken_name_keeps_both():
    path = made(jnp.zeros((2, 3)), measurements={"state": jnp.ones(2), "time": jnp.ones(2), "norm": jnp.ones((2, 5))})
    data = path.to_xarray()
    assert data["measurement_state"].values.tolist() == [1, 1]
    assert data["measurement_time"].values.tolist() == [1, 1]
    assert data["norm"].dims == ("time", "norm_axis")
    assert data["state"].shape == (2, 3)


def test_arc_length_is_not_called_time():
    path = tw.flow(
        lambda x: jnp.sum(x**2), jnp.ones(2), geometry=tw.Euclidean(), scheme=tw.Constrained(0.1), num_steps=2
    )
    assert path.to_xarray()["time"].attrs["long_name"] == "arc length"
    assert run("backtracking", num_steps=1).to_xarray()["time"].attrs["long_name"] != "arc length"


def test_a_path_of_several_runs_is_told():
    several = made(jnp.zeros((2, 3)), times=jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"one run; this one has times of shape \(4, 2\)"):
        several.to_xarray()


@pytest.mark.parametrize("name", ["particles", "grid", "backtracking"])
def test_a_netcdf_file_reads_back_as_it_was(name: str, tmp_path: Path):
    data = run(name, num_steps=5).to_xarray()
    io.write_netcdf(run(name, num_steps=5), tmp_path / "path.nc")
    with xarray.open_dataset(tmp_path / "path.nc", engine="h5netcdf") as back:
        assert back.drop_attrs().equals(data.drop_attrs())
        assert {k: v for k, v in back.attrs.items() if k != "stats"} == {
            k: v for k, v in data.attrs.items() if k != "stats"
        }
        assert back["time"].attrs == data["time"].attrs


def test_a_netcdf_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = run("backtracking", num_steps=1)
    io.write_netcdf(path, tmp_path / "path.nc")
    old = (tmp_path / "path.nc").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_atomic.os, "replace", full)
    with pytest.raises(tw.CheckpointError, match="could not be written: No space left"):
        io.write_netcdf(run("backtracking", num_steps=2), tmp_path / "path.nc")
    assert os.listdir(tmp_path) == ["path.nc"]
    assert (tmp_path / "path.nc").read_bytes() == old


@pytest.mark.parametrize("missing", ["xarray", "h5netcdf", "h5py"])
def test_a_missing_package_names_the_extra(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = run("backtracking", num_steps=1)
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'thalweg\[cli\]'"):
        io.write_netcdf(path, tmp_path / "path.nc")
    assert os.listdir(tmp_path) == []
