"""Nonlinear regressions of the NIST Statistical Reference Datasets, with answers certified to 11 digits.

The files under `data/nist/` are kept as NIST publishes them and parsed here; only the models, one line of mathematics
each in the files, are written by hand. Inputs and outputs are what the model relates, so for Nelson the output is
$\\log y$.
"""

import importlib.resources
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from thalweg._types import Array
from thalweg.problems._problem import RegressionProblem


class Dataset(NamedTuple):
    """The numbers of one file, as published.

    **Attributes:** `outputs`: shape `(num_observations,)`; `inputs`: shape `(num_observations, num_predictors)`;
    `starts`: shape `(2, num_params)`; `params`, `standard_deviations`: certified, shape `(num_params,)`;
    `residual_sum_of_squares`: certified; `description`: the file's own account of where the data come from.
    """

    outputs: np.ndarray
    inputs: np.ndarray
    starts: np.ndarray
    params: np.ndarray
    standard_deviations: np.ndarray
    residual_sum_of_squares: float
    description: str


def parse(text: str) -> Dataset:
    """Read a file of the collection; its header says on which lines its tables stand.

    **Raises:** `ValueError` if the text is not such a file.
    """
    lines = text.splitlines()

    def table(label: str) -> list[list[str]]:
        place = re.search(label + r"\s*\(lines\s+(\d+)\s+to\s+(\d+)\)", text)
        if place is None:
            raise ValueError(f"Not a NIST StRD file: its header does not say on which lines {label!r} stands.")
        return [line.split() for line in lines[int(place[1]) - 1 : int(place[2])] if line.strip()]

    def section(label: str) -> str:
        found = re.search(rf"^{label}:(.*?)\n\s*\n", text, re.DOTALL | re.MULTILINE)
        return " ".join(found[1].split()) if found else ""

    # A row of parameters reads `b1 = start-1 start-2 certified standard-deviation`.
    rows = np.array([[float(entry) for entry in row[2:]] for row in table("Starting Values")])
    data = np.array([[float(entry) for entry in row] for row in table("Data")])
    rss = re.search(r"^Residual Sum of Squares:\s*(\S+)", text, re.MULTILINE)
    if rss is None or rows.shape[1] != 4:
        raise ValueError("Not a NIST StRD file: its certified values are missing.")
    return Dataset(
        outputs=data[:, 0],
        inputs=data[:, 1:],
        starts=rows[:, :2].T,
        params=rows[:, 2],
        standard_deviations=rows[:, 3],
        residual_sum_of_squares=float(rss[1]),
        description=section("Reference"),
    )


def _gauss(b: Array, x: Array) -> Array:
    first = b[2] * jnp.exp(-(((x - b[3]) / b[4]) ** 2))
    second = b[5] * jnp.exp(-(((x - b[6]) / b[7]) ** 2))
    return b[0] * jnp.exp(-b[1] * x) + first + second


def _enso(b: Array, x: Array) -> Array:
    def cycle(cosine: Array, sine: Array, period: Any) -> Array:
        angle = 2 * jnp.pi * x / period
        return cosine * jnp.cos(angle) + sine * jnp.sin(angle)

    return b[0] + cycle(b[1], b[2], 12.0) + cycle(b[4], b[5], b[3]) + cycle(b[7], b[8], b[6])


def _chwirut(b: Array, x: Array) -> Array:
    return jnp.exp(-b[0] * x) / (b[1] + b[2] * x)


def _lanczos(b: Array, x: Array) -> Array:
    return b[0] * jnp.exp(-b[1] * x) + b[2] * jnp.exp(-b[3] * x) + b[4] * jnp.exp(-b[5] * x)


_MODELS: dict[str, Callable[[Array, Array], Array]] = {
    "Chwirut1": _chwirut,
    "Chwirut2": _chwirut,
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": _enso,
    "Eckerle4": lambda b, x: b[0] / b[1] * jnp.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Gauss1": _gauss,
    "Gauss2": _gauss,
    "Kirby2": lambda b, x: (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2),
    "Lanczos1": _lanczos,
    "Lanczos3": _lanczos,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH17": lambda b, x: b[0] + b[1] * jnp.exp(-x * b[3]) + b[2] * jnp.exp(-x * b[4]),
    # expm1 keeps the digits that 1 - exp(-b2 x) loses for small b2 x.
    "Misra1a": lambda b, x: -b[0] * jnp.expm1(-b[1] * x),
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda b, x: b[0] - b[1] * x[:, 0] * jnp.exp(-b[2] * x[:, 1]),
    "Rat42": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / jnp.pi,
}

DATASETS: tuple[str, ...] = tuple(_MODELS)
"""The names of the data sets, as NIST spells them."""


def nist_regression(dataset: str) -> RegressionProblem:
    r"""A nonlinear regression of the NIST Statistical Reference Datasets.

    $$\min_\theta \sum_n (y_n - m(\theta, x_n))^2$$

    From easy (`Misra1a`, `Chwirut2`, `DanWood`) over average (`Gauss2`, `Kirby2`, `ENSO`, `Nelson`) to hard (`Rat42`,
    `Rat43`, `MGH09`, `MGH17`, `Eckerle4`), each with a far start and a near one. `Lanczos1` is exact data to
    rounding: its certified sum of squares is 1e-25.

    **Arguments:** `dataset`: one of [`thalweg.problems.DATASETS`][].

    **Source:** NIST/ITL StRD, nonlinear regression; the original reference of each data set is in `problem.source`.
    Public domain.
    """
    if dataset not in _MODELS:
        raise ValueError(f"`dataset` must be one of {', '.join(DATASETS)}; got {dataset!r}.")
    file = importlib.resources.files("thalweg.problems") / "data" / "nist" / f"{dataset}.dat"
    data = parse(file.read_text(encoding="ascii"))
    return RegressionProblem(
        name=dataset.lower(),
        source=f"NIST StRD {dataset}: {data.description}",
        model=_MODELS[dataset],
        inputs=jnp.asarray(data.inputs[:, 0] if data.inputs.shape[1] == 1 else data.inputs),
        outputs=jnp.asarray(np.log(data.outputs) if dataset == "Nelson" else data.outputs),
        starts=jnp.asarray(data.starts),
        certified_params=jnp.asarray(data.params),
        certified_sd=jnp.asarray(data.standard_deviations),
        certified_rss=data.residual_sum_of_squares,
    )
