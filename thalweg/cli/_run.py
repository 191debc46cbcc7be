"""One run from its problem file to its folder: understand, compute, save, compare, report."""

import dataclasses
import datetime
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

import thalweg as tw
from thalweg._errors import CheckpointError
from thalweg._path import Path as FlowPath
from thalweg._path import concatenate
from thalweg._result import RESULTS, ended_well
from thalweg.cli import missing_extra
from thalweg.cli._document import Document
from thalweg.cli._environment import platform_facts, versions
from thalweg.cli._errors import ExitCode, UsageError
from thalweg.cli._folder import RunFolder, choose_folder, digests, neighbours, require_same_inputs
from thalweg.cli._plan import Choices, Plan, make_plan, precision_of, read_run_options
from thalweg.cli._progress import ProgressBar
from thalweg.cli._reference import reference_rows
from thalweg.cli._report import report
from thalweg.cli._rows import Row

# So many points of each curve are kept in `run.json`, for `thalweg show`.
_CURVE_POINTS = 60


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run: the record that `run.json` holds, the path, and the objects that made it."""

    record: dict[str, Any]
    exit_code: ExitCode
    folder: Path
    path: FlowPath | None = None
    rows: tuple[Row, ...] = ()


def run_document(
    document: Document,
    *,
    out: Path | None = None,
    resume: bool = False,
    seed: int | None = None,
    with_report: bool = True,
    quiet: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Run a problem and leave its folder.

    **Arguments:** `document`: the problem; `out`: the run folder (`None`: the next free `runs/<name>-<n>`); `resume`:
    go on with what is in it; `seed`: instead of the file's; `with_report`: whether figures and report are written;
    `quiet`: no progress; `console`: where progress and notes go (standard error).

    **Raises:** `UsageError` before anything is computed or written.
    """
    console = console or Console(stderr=True)
    say = (lambda text: None) if quiet else (lambda text: console.print(Text(text), soft_wrap=True))
    _require_extras(with_report)
    folder = choose_folder(document, out, resume)
    if folder.resumes and seed is None:
        seed = folder.read_record().get("seed")
    options = read_run_options(document, seed)
    with precision_of(options):
        plan = make_plan(document, options)
        for function in dict.fromkeys((f.reference, f.path) for f in plan.functions):
            say(f"Importing {function[0]}" + (f"  (runs the code in {function[1]})" if function[1] else ""))
        choices = plan.build()
        files = _input_files(plan)
        if folder.resumes:
            require_same_inputs(folder, files)
        else:
            _first_save(choices, document)
        record = {**_first_record(plan, document), "inputs": digests(files)}
        if not folder.resumes:
            folder.begin(document, files, record)
        note = "" if options.precision == "float64" else ", as [run] precision asks"
        say(f"Computing in {options.precision}{note}. Run folder: {folder.path}")
        outcome = _compute(plan, choices, folder, record, files, quiet, console)
        if with_report and outcome.path is not None:
            report(plan, choices, outcome.path, outcome.rows, folder, record)
            folder.write_record(record)
        return outcome


def _require_extras(with_report: bool) -> None:
    """Raise before anything is computed if what writes the results is not installed."""
    for name in ("xarray", "h5netcdf", "h5py", *(("matplotlib", "PIL") if with_report else ())):
        if importlib.util.find_spec(name) is None:
            raise UsageError(missing_extra(name))


def _input_files(plan: Plan) -> dict[str, Path]:
    """Every file of the user's that decides the run, by its path relative to the problem file."""
    folder = plan.document.folder
    files = {f.reference.rpartition(":")[0]: f.path for f in plan.functions if f.path is not None}
    files |= {data.reference: data.path for data in plan.data_files}
    if plan.functions:
        imported = neighbours(folder)
        files |= {
            name: path for name, path in imported.items() if path.resolve() not in {p.resolve() for p in files.values()}
        }
    return files


def _first_save(choices: Choices, document: Document) -> None:
    """Compute the first save only, so that what is wrong with the start is said before a folder is made."""
    try:
        next(iter(_iterate(choices, None, None)))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{document.name}: {error}") from error


def _iterate(choices: Choices, checkpoint: Any, progress: Callable[..., Any] | None) -> Any:
    return tw.iterate(
        choices.energy,
        choices.state,
        geometry=choices.geometry,
        scheme=choices.scheme,
        checkpoint=checkpoint,
        progress=progress,
        **choices.options,
    )


def _first_record(plan: Plan, document: Document) -> dict[str, Any]:
    return {
        "title": plan.title,
        "problem_file": document.name,
        "status": "running",
        "started": _now(),
        "seed": plan.options.seed,
        "precision": plan.options.precision,
        "versions": versions(),
        "platform": platform_facts(),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _compute(
    plan: Plan,
    choices: Choices,
    folder: RunFolder,
    record: dict[str, Any],
    files: dict[str, Path],
    quiet: bool,
    console: Console,
) -> Outcome:
    started = time.monotonic()
    checkpoint = tw.Checkpoint(folder.checkpoint, every_seconds=plan.options.checkpoint_seconds)
    pieces: list[FlowPath] = []
    with ProgressBar(console, quiet=quiet) as bar:
        try:
            for piece in _iterate(choices, checkpoint, bar):
                pieces.append(piece)
                if folder.resumes and len(pieces) == 1:
                    # Not before: a folder whose checkpoint is refused stays as it was.
                    folder.begin(plan.document, files, record)
        except KeyboardInterrupt:
            if pieces:
                pieces[-1] = dataclasses.replace(pieces[-1], result=RESULTS.interrupted)
        except (CheckpointError, ValueError, TypeError) as error:
            # Before the first save it is what was asked for that does not fit; later it is a failure of the run.
            if pieces:
                raise
            raise UsageError(str(error)) from error
    if not pieces:
        record |= {"status": "interrupted", "exit_code": int(ExitCode.INTERRUPTED), "finished": _now()}
        folder.write_record(record)
        return Outcome(record, ExitCode.INTERRUPTED, folder.path)
    path = concatenate(pieces)
    exit_code, status = _ending(path)
    if not quiet:
        console.print(Text(f"{path.message} Writing {folder.path} …"), soft_wrap=True)
    rows = reference_rows(choices.problem, path, choices.geometry, choices.scheme, plan.tolerances)
    record |= {
        "status": status,
        "exit_code": int(exit_code),
        "finished": _now(),
        "seconds": round(time.monotonic() - started, 3),
        **summary_of(path),
        "reference": [row.as_dict() for row in rows],
    }
    record["files"] = _save(path, folder)
    folder.write_record(record)
    return Outcome(record, exit_code, folder.path, path, tuple(rows))


def _ending(path: FlowPath) -> tuple[ExitCode, str]:
    if path.result == RESULTS.interrupted:
        return ExitCode.INTERRUPTED, "interrupted"
    if ended_well(path.result):
        return ExitCode.DONE, "done"
    return ExitCode.FAILED, "failed"


def summary_of(path: FlowPath) -> dict[str, Any]:
    """How a path ended and what was measured, as plain data."""
    summary: dict[str, Any] = {
        "result": next(name for name in RESULTS._name_to_item if path.result == getattr(RESULTS, name)),
        "message": path.message,
        "num_steps": int(path.final.num_steps),
        "time": float(path.final.time),
        "saves": len(path),
    }
    for name in ("energies", "dissipation_rates"):
        if name in path.records:
            summary[name] = _curve(path.records[name])
    if "energies" not in path.records and "regular_energy" in path.measurements:
        summary["regular_energy"] = _curve(path.measurements["regular_energy"])
    # Steps without a largest size follow no flow in time: their balance would say nothing.
    timed = "times" not in path.stats
    if {"energies", "dissipation_rates"} <= set(path.records) and len(path) > 1 and timed:
        summary["energy_balance"] = path.energy_balance()._asdict()
    return {**summary, "unavailable": path.unavailable, "stats": path.stats}


def _curve(values: Any) -> dict[str, Any]:
    curve = np.asarray(values, float)
    shown = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), _CURVE_POINTS)).astype(int))
    return {"first": float(curve[0]), "last": float(curve[-1]), "curve": curve[shown].tolist()}


def _save(path: FlowPath, folder: RunFolder) -> dict[str, str]:
    from thalweg.io import write_netcdf

    path.save(folder.path / "path.npz")
    write_netcdf(path, folder.path / "path.nc")
    return {"path": "path.npz", "netcdf": "path.nc", "checkpoint": folder.checkpoint.name}
