"""`make bench-vector`: the four benchmarks of vector space one after another, and one table of what was aimed at.

python -m benchmarks.vector             # everything anew
python -m benchmarks.vector --ours      # only thalweg anew, the peers from the files
python -m benchmarks.vector --table     # only write the tables again
"""

import argparse
import math
from collections.abc import Iterator

from benchmarks import _harness as harness
from benchmarks import constrained, cutest, nist, pinn


def targets() -> Iterator[tuple[str, str, str, bool]]:
    """What was aimed at, what was measured, and whether it was met."""
    problems = harness.load(harness.RESULTS / "cutest.json")["problems"]
    present = {solver for row in problems.values() for solver in row["solvers"]}
    solved = {
        solver: {name for name, row in problems.items() if cutest.solved(row, row["solvers"].get(solver, {}))}
        for solver in present
    }

    def median(solver: str, names: set[str]) -> float:
        return harness.median(problems[name]["solvers"][solver]["cpu"] for name in names)

    ours = solved[cutest.OURS]
    for peer in ("trust-exact", "optimistix BFGS", "optimistix LBFGS", "optax.lbfgs"):
        if peer not in present:
            continue
        least = len(solved[peer]) + (peer != cutest.NEWTON)
        yield (f"CUTEst: solved, {peer} {len(solved[peer])}", f"≥ {least}", f"{len(ours)}", len(ours) >= least)
        both = ours & solved[peer]
        theirs, mine = median(peer, both), median(cutest.OURS, both)
        aim, measured = harness.milliseconds(theirs), harness.milliseconds(mine)
        yield (f"CUTEst: median ms, solved by {peer} too", f"≤ {aim}", measured, mine <= theirs)

    entries = [row["solvers"][nist.OURS] for row in harness.load(harness.RESULTS / "nist.json")["problems"].values()]
    digits = [d for entry in entries for d in nist.digits_of(entry)]
    six, eight = sum(d >= 6 for d in digits), sum(d >= 8 for d in digits)
    yield ("NIST: starts with 6 digits", f"{len(digits)}", f"{six}", six == len(digits))
    yield ("NIST: starts with 8 digits", f"≥ {math.ceil(0.9 * len(digits))}", f"{eight}", eight >= 0.9 * len(digits))

    seeds = harness.load(harness.RESULTS / "pinn.json")["problems"][pinn.OURS].get("seeds", [])
    errors, seconds = [row["error"] for row in seeds] or [math.inf], [row["cpu"] for row in seeds] or [math.inf]
    middle = harness.median(errors)
    yield (f"Poisson: median error of {len(seeds)} seeds", "≤ 2e-7", f"{middle:.1e}", middle <= 2e-7)
    yield ("Poisson: worst error", "≤ 1e-5", f"{max(errors):.1e}", max(errors) <= 1e-5)
    yield ("Poisson: most processor seconds of a seed", "≤ 10", f"{max(seconds):.1f}", max(seconds) <= 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", action="store_true", help="only thalweg anew, the peers from the files")
    parser.add_argument("--table", action="store_true", help="only write the tables again")
    asked = parser.parse_args()
    arguments = ["--table"] if asked.table else ["--reuse", "--solvers", "thalweg"] if asked.ours else []
    for benchmark in (nist, pinn, constrained, cutest):
        if asked.table and not (harness.RESULTS / f"{benchmark.__name__.rpartition('.')[2]}.json").exists():
            continue
        benchmark.main(arguments)
    rows = [(what, aim, measured, "yes" if met else "no") for what, aim, measured, met in targets()]
    lines = ["# Vector space: what was aimed at", "", *harness.table(["", "aim", "measured", "met"], rows), ""]
    lines += ["The tables beside this one hold the rest.", ""]
    (harness.RESULTS / "vector.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
