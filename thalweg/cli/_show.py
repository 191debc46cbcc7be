"""The record of a run as a person reads it in a terminal; no JAX is needed to look at a run."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from thalweg.cli._errors import UsageError

_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = {"done": "green", "failed": "bold red", "interrupted": "yellow", "running": "yellow"}
_COLUMNS = ("quantity", "reached", "reference", "error", "verdict")


def read_run(folder: Path) -> dict[str, Any]:
    """The record of a run folder.

    **Raises:** `UsageError` if it is none.
    """
    file = folder / "run.json"
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} is not a run folder: it has no run.json.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}.") from None
    if not isinstance(record, dict) or "status" not in record:
        raise UsageError(f"{file} is not the record of a run.")
    return record


def print_run(console: Console, record: dict[str, Any], folder: Path) -> None:
    """The summary of one run."""
    status = str(record["status"])
    console.print(
        Text.assemble((str(record.get("title", folder.name)), "bold"), "  ", (status, _STYLES.get(status, "")))
    )
    if "message" not in record:
        _line(console, "This run has not ended.")
        _line(console, f"To go on with it: thalweg run {folder} --resume")
        return
    _line(console, record["message"])
    seconds = f"{record.get('seconds', 0):.1f} s" if record.get("seconds") is not None else ""
    end = "" if "times" in record.get("stats", {}) else f" to t = {record['time']:.6g}"
    facts = [f"{record['num_steps']} steps{end}", f"{record['saves']} saves", seconds]
    _line(console, ", ".join([*facts, str(record.get("precision")), f"seed {record.get('seed')}"]))
    for name, label in (
        ("energies", "energy"),
        ("regular_energy", "regular energy"),
        ("dissipation_rates", "dissipation"),
    ):
        if name in record:
            curve = record[name]
            numbers = f"{_number(curve['first'])} → {_number(curve['last'])}"
            # A dissipation rate falls over many powers of ten.
            spark = sparkline(curve["curve"], logarithmic=name == "dissipation_rates")
            _line(console, f"{label:<16}{numbers:<28}{spark}")
    for reason in dict.fromkeys(text.splitlines()[0] for text in record.get("unavailable", {}).values()):
        _line(console, f"{'no value':<16}{reason}")
    if balance := record.get("energy_balance"):
        lost, dissipated = _number(balance["decrease"]), _number(balance["dissipated"])
        share = balance["relative_error"]
        why = ", by the length of the steps" if share is not None and share > 0.01 else ""
        apart = "" if share is None else f" (they differ by {100 * share:.2g} %{why})"
        _line(console, f"{'balance':<16}energy lost {lost}, dissipated {dissipated}{apart}")
    if record.get("reference"):
        print_rows(console, {"": record["reference"]})
    if "report_error" in record:
        _line(console, f"The report could not be written: {record['report_error']}", "red")
    files = record.get("files", {})
    for name, label in (
        ("report", "report"),
        ("netcdf", "path (xarray)"),
        ("path", "path (tw.load)"),
        ("figures", "figures"),
    ):
        if name in files:
            _line(console, f"{label:<16}{folder / files[name]}")
    if status == "interrupted":
        _line(console, f"To go on with it: thalweg run {folder} --resume")


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(f"  {text}", style=style), soft_wrap=True)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"


def sparkline(values: Iterable[float | None], *, logarithmic: bool = False) -> str:
    """A curve as a row of blocks; a value that is not finite leaves a gap."""
    numbers = [math.nan if value is None else float(value) for value in values]
    if logarithmic:
        numbers = [math.log(value) if value > 0 else math.nan for value in numbers]
    finite = [value for value in numbers if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    numbers = numbers[:: max(1, math.ceil(len(numbers) / 30))]
    return "".join(_BLOCKS[round((value - low) * scale)] if math.isfinite(value) else " " for value in numbers)


def print_rows(console: Console, groups: dict[str, list[dict[str, Any]]], title: str = "") -> None:
    """Reached and reference values with their verdicts: one table, with a heading over each group of rows.

    A heading is longer than any column, so the columns are given their widths here and the groups are printed in turn.
    """
    cells = {group: [_row_cells(row) for row in rows] for group, rows in groups.items()}
    everything = [dict(zip(_COLUMNS, _COLUMNS, strict=True)), *(row for rows in cells.values() for row in rows)]
    widths = {name: max(len(row[name]) for row in everything) for name in _COLUMNS}
    gap = 2 if sum(widths.values()) + 2 * len(_COLUMNS) <= console.width else 1
    others = sum(widths[name] + gap for name in _COLUMNS[1:])
    # On a narrow terminal the names are folded; numbers and verdicts never are.
    widths["quantity"] = max(12, min(widths["quantity"], console.width - others - gap + 1))

    def grid(rows: list[dict[str, str]], style: str = "") -> Table:
        table = Table(show_header=False, box=None, padding=(0, gap, 0, 0), pad_edge=False, style=style)
        for name in _COLUMNS:
            right = name in ("reached", "reference", "error")
            table.add_column(justify="right" if right else "left", width=widths[name], overflow="fold")
        for row in rows:
            verdict = Text(row["verdict"], style=style or _VERDICT_STYLES.get(row["verdict"], ""))
            table.add_row(*(row[name] for name in _COLUMNS[:-1]), verdict)
        return table

    if title:
        console.print(Text(title, style="bold"))
    console.print(grid(everything[:1], style="dim"))
    for group, rows in cells.items():
        if group:
            console.print(Text(group, style="bold"), soft_wrap=True)
        console.print(grid(rows))


_VERDICT_STYLES = {"met": "green", "NOT MET": "bold red"}


def _row_cells(row: dict[str, Any]) -> dict[str, str]:
    """The text of each column of one row of a record."""
    from thalweg.cli._rows import Row

    numbers = {name: math.nan if row[name] is None else row[name] for name in ("reached", "reference", "error")}
    return Row(row["quantity"], **numbers, tolerance=row["tolerance"], unit=row["unit"]).cells
