"""A run as one page that needs nothing else: no network, no other file, no running program.

The page says what was run, how it ended, what was measured and what was not, and shows the pictures. Everything that
comes from outside is escaped, and a policy in the page forbids it to load anything.
"""

import base64
import importlib.metadata
import importlib.resources
import json
import pathlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from thalweg._path import Path
from thalweg.io._atomic import replacing
from thalweg.plotting import _html
from thalweg.plotting._animate import render_frames
from thalweg.plotting._curves import energy_curve, is_timed, time_label
from thalweg.plotting._path import Pictures
from thalweg.plotting._states import Saves, View
from thalweg.plotting._style import number
from thalweg.plotting._words import ReferenceRow, findings, has_balance, outcome, percent, reasons, reference_rows

# What the frames of the animation may take, so that the page stays below three megabytes.
_FRAME_BYTES = 1_500_000
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STATUS = {"done": "good", "stopped": "good", "interrupted": "", "failed": "bad"}


def write_report(
    file: Any,
    path: Path,
    *,
    title: str,
    settings: Mapping[str, Mapping[str, Any]],
    reference: Iterable[Any] | None = None,
    code: str = "",
    notes: Sequence[str] = (),
    energy: Any = None,
    reference_state: Any = None,
    reference_energy: float | None = None,
    coordinates: tuple[int, int] = (0, 1),
    coordinate_names: Sequence[str] | None = None,
    num_frames: int = 24,
) -> pathlib.Path:
    """Write a run as one self-contained HTML page.

    **Arguments:** `file`: where to; its folder is made; `path`: of one flow; `title`; `settings`: what was run, tables
    of names and values by name; `reference`: rows (name, reached, reference, error, verdict), see
    [`thalweg.plotting.ReferenceRow`][]; `code`: the same run in Python; `notes`: paragraphs; `num_frames`: of the
    animation; the others as for [`thalweg.plotting.plot_path`][].

    The file appears at once when it is complete; an older one is kept until then.

    **Returns:** the path of the file.

    **Raises:** `ValueError` for a row of `reference` that has not five entries, or unknown `coordinates`.
    """
    rows = reference_rows(reference)
    view = View(energy, reference_state, coordinates, coordinate_names)
    pictures = Pictures(path, view, reference_energy)
    states = "States were saved at {} times; those shown differ from each other by about equal amounts."
    sections = [
        '<div class="hero">',
        _html.section("Result", _html.bullets(findings(path, rows))),
        _html.section("Animation", _player(path, view, reference_energy, num_frames)),
        "</div>",
        _html.section("Reference", _reference(rows)),
        _html.section("Energy", _energy(path, pictures)),
        _html.section(
            "States",
            _html.figure(pictures.png("states"), "The states along the path.", states.format(len(path)), wide=True),
        ),
        _html.section("What was run", _html.side_by_side(_html.named_table(*item) for item in settings.items())),
        _html.section("Measurements", _measurements(path)),
        _html.section("Not available", _unavailable(path)),
        _html.section("Automatic choices and timings", _stats(path)),
        _html.section("The same run in Python", f"<pre><code>{_html.text(code)}</code></pre>" if code else ""),
        _html.section("Notes", _html.paragraphs(notes)),
    ]
    page = "\n".join([_head(title), _header(path, title), "<main>", *filter(None, sections), "</main>", _foot()])
    return _write(file, page.encode("utf-8"))


def write_figures(
    directory: Any,
    path: Path,
    *,
    title: str | None = None,
    energy: Any = None,
    reference_state: Any = None,
    reference_energy: float | None = None,
    coordinates: tuple[int, int] = (0, 1),
    coordinate_names: Sequence[str] | None = None,
) -> dict[str, pathlib.Path]:
    """Write the figures of a path as PNG files into a folder, which is made if need be.

    **Arguments:** as for [`thalweg.plotting.plot_path`][].

    **Returns:** the files by name: `overview`, `energy`, `dissipation`, `distances` and `states`, as far as they could
    be measured.
    """
    view = View(energy, reference_state, coordinates, coordinate_names)
    pictures = Pictures(path, view, reference_energy, title)
    folder = pathlib.Path(directory)
    return {name: _write(folder / f"{name}.png", pictures.png(name)) for name in pictures.names()}


def _write(file: Any, data: bytes) -> pathlib.Path:
    """Write a whole file at once, its folder made if need be, so that a reader never meets half of it."""
    target = pathlib.Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as aside:
        aside.write_bytes(data)
    return target


def _packaged(name: str) -> str:
    return importlib.resources.files("thalweg.plotting").joinpath(name).read_text(encoding="utf-8")


def _head(title: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_html.text(title)}</title>\n<style>\n{_packaged('report.css')}</style>\n</head>\n<body>"
    )


def _foot() -> str:
    try:
        version = importlib.metadata.version("thalweg")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed, run from its source)"
    made = f"Written by thalweg {version} with jax {jax.__version__} on Python {platform.python_version()}."
    return f"<footer>{_html.text(made)}</footer>\n<script>\n{_packaged('report.js')}</script>\n</body>\n</html>\n"


def _header(path: Path, title: str) -> str:
    kind, word = outcome(path)
    facts = {"steps": str(int(path.final.num_steps))}
    if is_timed(path):
        facts[time_label(path)] = number(path.final.time)
    if "energies" in path.records:
        facts["energy"] = f"{number(path.energies[0], 5)} → {number(path.energies[-1], 5)}"
    elif (curve := energy_curve(path)) is not None:
        facts["energy without its entropy"] = f"{number(curve.values[0], 5)} → {number(curve.values[-1], 5)}"
    if "seconds" in path.stats:
        facts["seconds"] = number(path.stats["seconds"], 3)
    listed = "".join(f"<div><dt>{_html.text(n)}</dt><dd>{_html.text(v)}</dd></div>" for n, v in facts.items())
    return (
        f'<header class="page">\n<h1>{_html.text(title)}</h1>\n{_html.pill(word, _STATUS[kind])}\n'
        f'<p class="lead">{_html.text(path.message)}</p>\n<dl class="facts">{listed}</dl>\n</header>'
    )


def _player(path: Path, view: View, reference_energy: float | None, num_frames: int) -> str:
    chosen, frames = render_frames(path, view, reference_energy, num_frames, dpi=130)
    while sum(map(len, frames)) > _FRAME_BYTES and len(frames) > 2:
        # Every second one, counted from the end, so that the end stays.
        chosen, frames = chosen[::-2][::-1], frames[::-2][::-1]
    saves = Saves(path)
    labels = [saves.stamp(index).replace("$", "") for index in chosen]
    encoded = [base64.b64encode(frame).decode("ascii") for frame in frames]
    # Nothing of the user's stands in here, only numbers, which cannot end a script element.
    data = json.dumps({"labels": labels, "frames": encoded})
    shown = f"{len(frames)} of the {len(path)} saves, chosen half by time and half by how much the state changes."
    caption = f"{shown if len(frames) < len(path) else 'Every save.'} Without scripts the end of the path is shown."
    return (
        f'<figure class="player">\n{_html.image(frames[-1], f"The state at {labels[-1]}, above the energy.")}\n'
        '<div class="controls" hidden><button type="button">Play</button>'
        '<input type="range" min="0" value="0" step="1" aria-label="Frame"><output></output></div>\n'
        f"<figcaption>{_html.text(caption)}</figcaption>\n</figure>\n"
        f'<script type="application/json" id="frames">{data}</script>'
    )


def _reference(rows: list[ReferenceRow]) -> str:
    if not rows:
        return _html.paragraphs(["No reference answer was given for this problem."])
    look = {True: "good", False: "bad", None: ""}
    cells = [(row.name, *row.texts(), _html.pill(row.verdict_text, look[row.agrees])) for row in rows]
    return _html.table(("quantity", "reached", "reference", "error", "verdict"), cells, numeric=(1, 2, 3))


def _energy(path: Path, pictures: Pictures) -> str:
    recorded = path.stats.get("distances_squared", "as the scheme reports it")
    against = f"against the number of the {time_label(path)}"
    rate = ("The squared norm of the gradient {}.", "These steps follow no flow in time, so there is no rate.")
    if is_timed(path):
        against = "against time"
        rate = (
            "The dissipation rate {}.",
            "The line is measured at the saves; the steps are the energy lost between two saves, divided by the time "
            "between them. For the flow itself the two agree.",
        )
    captions = {
        "energy": (f"The energy {against}.", ""),
        "dissipation": (rate[0].format(against), rate[1]),
        "distances": (f"The length of the steps {against}.", f"Squared distance recorded: {recorded}."),
    }
    parts = [_html.figure(pictures.png(name), *captions[name]) for name in pictures.names() if name in captions]
    if has_balance(path):
        balance = path.energy_balance()
        values = {
            "energy lost, F(start) − F(end)": number(balance.decrease, 6),
            "energy dissipated, the rate integrated step by step": number(balance.dissipated, 6),
            "relative difference": percent(balance.relative_error),
        }
        parts.append(_html.named_table("Energy balance", values))
    return _html.side_by_side(parts)


def _measurements(path: Path) -> str:
    """The measurements at the start and at the end."""
    rows = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(path.measurements):
        values = np.asarray(leaf)
        name = jax.tree_util.keystr(keys, simple=True, separator=".").replace("_", " ")
        if values.ndim == 1:
            numbers = (values[0], values[-1], values.min(), values.max())
            rows.append((name, *(number(value, 5) for value in numbers)))
        else:
            rows.append((name, f"array of shape {values.shape[1:]}", "", "", ""))
    columns = ("quantity", "first save", "last save", "smallest", "largest")
    return _html.table(columns, rows, numeric=(1, 2, 3, 4)) if rows else ""


def _unavailable(path: Path) -> str:
    if not path.unavailable:
        return _html.paragraphs(["Energy, dissipation rate and distances were all measured."])
    return _html.bullets(f"{names[0].upper()}{names[1:]}: {reason}." for reason, names in reasons(path).items())


def _stats(path: Path) -> str:
    known = {
        "num_steps": ("steps", str),
        "seconds": ("time of the whole run", lambda value: f"{number(value, 3)} s"),
        "first_chunk_seconds": (
            "first steps, compilation included",
            lambda value: f"{number(value, 3)} s",
        ),
        "save_bytes": ("size of what was saved", lambda value: f"{number(value / 1e6, 3)} MB"),
    }
    values = {}
    for name, value in path.stats.items():
        label, show = known.get(name, (name, lambda value: value))
        values[label] = show(value)
    return _html.named_table("", values)
