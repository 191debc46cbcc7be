"""The main job on real data: three parts, run as a user would run them, and one table of reached and reference values.

The problem files lie beside this module in `demo/`; each run leaves its folder, with a copy of its file to start from.
"""

import dataclasses
import importlib.resources
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from thalweg._path import Path as FlowPath
from thalweg.cli._document import Document, parse_document
from thalweg.cli._errors import ExitCode, UsageError
from thalweg.cli._folder import plain
from thalweg.cli._rows import Row
from thalweg.cli._run import Outcome, run_document
from thalweg.cli._show import print_rows

NAMES = ("eight_schools", "misra1a", "nelson", "rat43", "mgh09", "fokker_planck", "jko")
_MARK = "demo.json"
# JKO steps are of first order: the two paths differ by a small multiple of the step size, 0.05.
_PATH_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """The runs of the demo by name, and the rows of its table by title; `trouble` says which runs did not end well."""

    outcomes: dict[str, Outcome]
    groups: dict[str, list[Row]]
    trouble: dict[str, str]
    seconds: float
    exit_code: ExitCode

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "groups": {title: [row.as_dict() for row in rows] for title, rows in self.groups.items()},
            "trouble": self.trouble,
            "folders": {name: str(outcome.folder) for name, outcome in self.outcomes.items()},
            "seconds": self.seconds,
            "exit_code": int(self.exit_code),
        }


def demo_documents() -> dict[str, Document]:
    """The problem files of the demo, by name."""
    folder = importlib.resources.files("thalweg.cli") / "demo"
    texts = {name: (folder / f"{name}.toml").read_text(encoding="utf-8") for name in NAMES}
    return {
        name: parse_document(text, name=f"{name}.toml", stem=name, folder=Path.cwd()) for name, text in texts.items()
    }


def run_demo(documents: dict[str, Document], out: Path, *, quiet: bool, console: Console) -> DemoResult:
    """Run every document into a folder of its own below `out`, and gather the table.

    A folder of an earlier demo is replaced; any other that is not empty is refused.
    """
    started = time.monotonic()
    _clear(documents, out)
    outcomes: dict[str, Outcome] = {}
    for number, (name, document) in enumerate(documents.items(), start=1):
        if not quiet:
            console.print(Text(f"[{number}/{len(documents)}] {document.title}", style="bold"))
        outcomes[name] = run_document(document, out=out / name, quiet=quiet, console=console)
        if outcomes[name].exit_code is ExitCode.INTERRUPTED:
            break
    result = gather(documents, outcomes, time.monotonic() - started)
    (out / _MARK).write_text(json.dumps(plain(result.as_dict()), indent=2) + "\n", encoding="utf-8")
    return result


def _clear(documents: dict[str, Document], out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file. Choose another folder with --out DIR.")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise UsageError(f"The folder {out} is not empty and holds no earlier demo. Choose another with --out DIR.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Written first, so that a demo that is killed can be run again.
        (out / _MARK).write_text("{}\n", encoding="utf-8")
        for name in documents:
            if (out / name / "problem.toml").is_file():
                shutil.rmtree(out / name)
    except OSError as error:
        raise UsageError(f"The folder {out} cannot be written: {error}. Choose another with --out DIR.") from error


def gather(documents: dict[str, Document], outcomes: dict[str, Outcome], seconds: float) -> DemoResult:
    """The table of a demo, with what follows for the exit code."""
    groups: dict[str, list[Row]] = {}
    trouble: dict[str, str] = {}
    for name, outcome in outcomes.items():
        title = documents[name].title or name
        groups[title] = list(outcome.rows)
        if outcome.exit_code is not ExitCode.DONE:
            trouble[title] = outcome.record.get("message", "It did not come to its first step.")
        elif not outcome.rows:
            trouble[title] = "Nothing was compared."
        if "report_error" in outcome.record:
            trouble[title] = f"The report could not be written: {outcome.record['report_error']}"
    paths = [outcomes[name].path for name in ("fokker_planck", "jko") if name in outcomes]
    if len(paths) == 2 and paths[0] is not None and paths[1] is not None:
        groups["Double well: the two paths at equal times"] = [compare_paths(paths[0], paths[1])]
    rows = [row for group in groups.values() for row in group]
    if any(outcome.exit_code is ExitCode.INTERRUPTED for outcome in outcomes.values()):
        code = ExitCode.INTERRUPTED
    else:
        code = ExitCode.DONE if not trouble and all(row.met for row in rows) else ExitCode.FAILED
    return DemoResult(outcomes, groups, trouble, round(seconds, 1), code)


def compare_paths(first: FlowPath, second: FlowPath) -> Row:
    """The largest L¹ distance between two paths of densities on the same grid, over the times that both saved."""
    times, here, there = np.intersect1d(np.round(first.times, 9), np.round(second.times, 9), return_indices=True)
    difference = np.abs(np.asarray(first.states.values)[here] - np.asarray(second.states.values)[there])
    distances = difference.reshape(len(times), -1).sum(axis=1) * first.states.grid.cell_volume
    worst = int(np.argmax(distances)) if len(times) else 0
    error = float(distances[worst]) if len(times) > 1 else float("nan")
    label = f"L1 apart, t = {times[worst]:.2g}" if len(times) else "no equal times"
    return Row(label, error, 0.0, error, _PATH_TOLERANCE, "absolute")


def print_demo(console: Console, result: DemoResult) -> None:
    """The table, the verdict over all rows, and where the reports are."""
    groups = {title: [row.as_dict() for row in rows] for title, rows in result.groups.items()}
    print_rows(console, groups, title="Reached and reference values")
    rows = [row for group in result.groups.values() for row in group]
    met = sum(row.met for row in rows)
    good = result.exit_code is ExitCode.DONE
    text = f"{met} of {len(rows)} reference values met within their tolerances, in {result.seconds:.0f} s."
    console.print(Text(text, style="green" if good else "bold red"))
    for title, message in result.trouble.items():
        console.print(Text(f"{title}: {message}", style="bold red"), soft_wrap=True)
    console.print("Reports:")
    for outcome in result.outcomes.values():
        if "report" in outcome.record.get("files", {}):
            console.print(Text(f"  {outcome.folder / outcome.record['files']['report']}"), soft_wrap=True)
