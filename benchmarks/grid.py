"""`make bench-grid`: densities on grids against peers, closed forms and the stated orders.

python -m benchmarks.grid                     # everything anew; writes results/grid.json, results/grid.md and a figure
python -m benchmarks.grid --only well         # one part: well, jko, pieces or orders
python -m benchmarks.grid --ours              # only thalweg anew, the peers from the file
python -m benchmarks.grid --missing           # only what the file does not hold, or holds as failed
python -m benchmarks.grid --small             # the smallest sizes, to see that all of it runs
python -m benchmarks.grid --table             # only write the tables again
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _grid_jko as jko
from benchmarks import _grid_orders as orders
from benchmarks import _grid_pieces as pieces
from benchmarks import _harness as harness
from benchmarks import fokker_planck as well

# A compilation by numba takes a minute and more where the machine is shared.
LIMITS = harness.Limits(first=900.0, run=600.0)
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "fokker_planck_rotated.png"


def tasks(small: bool = False) -> list[tuple[str, str, tuple[Any, ...]]]:
    """Part, name of the row, and arguments of the part's `measure`."""
    found = [("well", well.key(*run), run) for run in (well.SMALLEST if small else well.RUNS)]
    found += [("jko", name, arguments) for name, arguments in jko.tasks(small).items()]
    found += [("pieces", name, (name, small)) for name in pieces.PIECES]
    found += [("orders", name, (name, small)) for name in orders.TABLES]
    return found


PARTS = {"well": well, "jko": jko, "pieces": pieces, "orders": orders}


def measure(part: str, arguments: Sequence[Any], report: Callable[[str], None]) -> dict[str, Any]:
    """What a worker does."""
    return PARTS[part].measure(*arguments, report)


def _is_ours(part: str, arguments: Sequence[Any]) -> bool:
    return part != "well" or arguments[0].startswith(well.OURS)


def run(
    file: Path,
    small: bool = False,
    only: Sequence[str] = (),
    ours: bool = False,
    missing: bool = False,
    limits: harness.Limits = LIMITS,
) -> dict[str, Any]:
    """Measure, and save after each row, so that a run may be cut short."""
    data = harness.load(file)
    rows = dict(data.get("problems", {}))
    worker = harness.Worker("benchmarks.grid", limits)
    for part, name, arguments in tasks(small):
        if (only and part not in only) or (ours and not _is_ours(part, arguments)):
            continue
        if missing and "failed" not in rows.get(f"{part}: {name}", {"failed": ""}):
            continue
        started = time.perf_counter()
        found = worker.measure(part, arguments)
        if "error" in found and isinstance(found["error"], str):
            found = {"failed": found["error"]}
            if part == "well":
                found |= {"solver": arguments[0], "n": arguments[1], "setting": arguments[2]}
        rows[f"{part}: {name}"] = found
        said = found.get("failed") or f"{found.get('cpu', 0.0):.3g} s a call"
        print(f"{part}: {name}: {said} ({time.perf_counter() - started:.0f} s)", flush=True)
        data = {"environment": environment(), "problems": rows}
        harness.save(file, data)
    worker.close()
    return data


def environment() -> dict[str, str]:
    """The versions, those of the peers included."""
    return harness.environment(("jax", "jaxlib", "numpy", "scipy", "py-pde", "numba", "FiPy", "fplanck"))


def part_of(data: Mapping[str, Any], part: str) -> dict[str, dict]:
    """The rows of a part."""
    rows = data["problems"].items()
    return {name.removeprefix(f"{part}: "): row for name, row in rows if name.startswith(f"{part}: ")}


def write(data: Mapping[str, Any], file: Path) -> None:
    """The tables."""
    lines = ["# Densities on grids", "", "What was aimed at:", ""]
    aims = [row for name, part in PARTS.items() for row in part.targets(part_of(data, name))]
    lines += harness.table(["", "aim", "measured", "met"], [(*row[:3], "yes" if row[3] else "no") for row in aims])
    lines += [""]
    for name, part in PARTS.items():
        if part_of(data, name):
            lines += part.report(part_of(data, name))
    lines += [harness.described(data["environment"]), ""]
    file.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the parts, separated by commas")
    parser.add_argument("--ours", action="store_true", help="only thalweg anew, the peers from the file")
    parser.add_argument("--missing", action="store_true", help="only what the file does not hold, or holds as failed")
    parser.add_argument("--small", action="store_true", help="the smallest sizes, into another file")
    parser.add_argument("--table", action="store_true", help="only write the tables again")
    asked = parser.parse_args(arguments)
    stem = "grid_small" if asked.small else "grid"
    file = harness.RESULTS / f"{stem}.json"
    only = [part for part in asked.only.split(",") if part]
    data = harness.load(file) if asked.table else run(file, asked.small, only, asked.ours, asked.missing)
    write(data, file.with_suffix(".md"))
    if not asked.small:
        well.figure(part_of(data, "well"), FIGURE)


if __name__ == "__main__":
    main()
