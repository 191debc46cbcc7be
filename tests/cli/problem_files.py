"""Small problem files for the tests of the command line, and a way to call it in this process."""

from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from thalweg.cli._app import app

MODEL = """
import jax.numpy as jnp
from beside import CENTRE

print("the user's own words")

def bowl(x):
    return jnp.sum((x - CENTRE) ** 2)

def bump(x):
    return jnp.exp(-8.0 * jnp.sum((x - 0.5) ** 2))

def log_normal(x):
    return -0.5 * jnp.sum(x**2)

def line(params, inputs):
    return params[0] + params[1] * inputs

def two_values(x):
    return x * jnp.ones(2)

def nothing(x):
    return jnp.log(-jnp.sum(x**2) - 1.0)

NUMBER = 3.0
"""

HEAT = """
title = "A bump that spreads"

[energy]
type = "Entropy"

[state]
type = "GridDensity"
function = "model.py:bump"

[state.grid]
lower = 0.0
upper = 1.0
shape = 8
boundary = "NoFlux"

[geometry]
type = "Wasserstein"

[scheme]
type = "Continuous"
step_size = 0.01

[run]
num_steps = 3

[report]
num_frames = 2
"""

LANGEVIN = """
[energy]
type = "KL"
target = { log_density = "model.py:log_normal", dim = 1 }

[state]
type = "Particles"
num_particles = 16
density = { type = "Gaussian", mean = [0.0], covariance = [[1.0]] }

[geometry]
type = "Wasserstein"

[scheme]
type = "Langevin"
step_size = 1e-3

[run]
num_steps = 20
save_every = 10
seed = 3
"""

VECTOR = """
[energy]
function = "model.py:bowl"

[state]
type = "Vector"
value = [1.0, 2.0]

[geometry]
type = "Euclidean"

[scheme]
type = "Explicit"
step_size = 0.25

[run]
num_steps = 4
"""


def write_problem(folder: Path, text: str, name: str = "problem.toml") -> Path:
    """A problem file with the module and data that it may name beside it."""
    (folder / "model.py").write_text(MODEL)
    (folder / "beside.py").write_text("CENTRE = 0.25\n")
    (folder / "points.csv").write_text("x,y\n0.0,1.0\n1.0,3.0\n2.0,5.0\n")
    file = folder / name
    file.write_text(text)
    return file


def thalweg(*arguments: Any) -> Result:
    """Call the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
