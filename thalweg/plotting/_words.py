"""What a path shows, said in sentences: how the run ended, what its energy did, how it compares with a reference.

Every number in a sentence was measured on the path; what was not measured is not said.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from thalweg._path import Path
from thalweg._result import RESULTS
from thalweg.plotting._curves import is_timed, rounding_of, time_label, times_of
from thalweg.plotting._style import number

# The two sides of the energy balance agree, in words, if they differ by less than this part.
_BALANCED = 0.01

# The ends of a run that did not fail: what they are called.
_ENDINGS = {
    "successful": "Done",
    "stopped": "Stopped as asked",
    "minimum": "At a minimum",
    "saddle_point": "At a saddle point",
    "flat_point": "At a flat point",
    "escaping": "Escaping to infinity",
    "unbounded": "No lower bound",
    "corner": "At a corner",
    "out_of_steps": "Out of steps",
}


class ReferenceRow(NamedTuple):
    """One quantity beside its reference, for a report.

    `reached`, `reference` and `error` are numbers, or texts that are shown as they are; `verdict` is `True` or `False`
    (within its tolerance or not), or a text: one that begins with "within" counts as agreement, one that begins with
    "not" or "outside" as disagreement, and any other is shown without counting.
    """

    name: str
    reached: Any
    reference: Any
    error: Any
    verdict: Any

    @property
    def agrees(self) -> bool | None:
        """Whether the row agrees with its reference; `None` if the verdict does not say."""
        if isinstance(self.verdict, bool | np.bool_):
            return bool(self.verdict)
        first = str(self.verdict).strip().lower()
        if first.startswith("within"):
            return True
        return False if first.startswith(("not", "outside")) else None

    @property
    def verdict_text(self) -> str:
        """The verdict in words."""
        if isinstance(self.verdict, bool | np.bool_):
            return "within" if self.verdict else "not within"
        return str(self.verdict)

    def texts(self) -> tuple[str, str, str]:
        """Reached, reference and error as text; the first two with the digits that show where they differ."""
        digits, differ = _digits_that_differ(self.reached, self.reference)
        return _text(self.reached, digits, differ), _text(self.reference, digits, differ), _text(self.error, 2)


def reference_rows(rows: Iterable[Any] | None) -> list[ReferenceRow]:
    """Rows given as tuples of five, checked."""
    found = []
    for row in rows or ():
        if len(row) != 5:
            raise ValueError(
                "Each row of `reference` must be (name, reached, reference, error, verdict); "
                f"got {len(row)} entries: {row!r}."
            )
        found.append(row if isinstance(row, ReferenceRow) else ReferenceRow(*row))
    return found


def outcome(path: Path) -> tuple[str, str]:
    """How the run ended, as one of "done", "stopped", "interrupted", "failed", and as one or two words."""
    for name, words in _ENDINGS.items():
        if path.result == getattr(RESULTS, name):
            return ("done" if name == "successful" else "stopped"), words
    if path.result == RESULTS.interrupted:
        return "interrupted", "Interrupted"
    return "failed", "Failed"


def findings(path: Path, rows: list[ReferenceRow]) -> list[str]:
    """What the path shows, one sentence for each thing that was measured."""
    sentences = [_about_energy(path)]
    if "dissipation_rates" in path.records:
        rates = np.asarray(path.dissipation_rates, np.float64)
        verb = "fell" if rates[-1] < rates[0] else "rose" if rates[-1] > rates[0] else "stayed"
        name = "dissipation rate" if is_timed(path) else "squared norm of the gradient"
        sentences.append(f"The {name} {verb} from {number(rates[0])} to {number(rates[-1])}.")
    if has_balance(path):
        sentences.append(_about_balance(path))
    if rows:
        sentences.append(about_reference(rows))
    return [sentence for sentence in sentences if sentence]


def _about_energy(path: Path) -> str:
    label, end = time_label(path), number(times_of(path)[-1])
    over = f"{label} {end}" if is_timed(path) else f"{int(path.final.num_steps)} steps"
    if "energies" not in path.records:
        if "regular_energy" not in path.measurements:
            return ""
        values = np.asarray(path.measurements["regular_energy"], np.float64)
        return (
            f"The energy has no value in this representation; the part without the entropy went from "
            f"{number(values[0], 5)} to {number(values[-1], 5)} over {over}."
        )
    values = np.asarray(path.energies, np.float64)
    rises = np.diff(values)
    rises = rises[rises > rounding_of(path)]
    verb = "fell" if values[-1] < values[0] else "rose" if values[-1] > values[0] else "stayed"
    text = f"The energy {verb} from {number(values[0], 5)} to {number(values[-1], 5)} over {over}"
    if len(values) < 2:
        return f"The energy at the only save is {number(values[0], 5)}."
    if not len(rises):
        return f"{text}, and never rose from one save to the next."
    times = "once" if len(rises) == 1 else f"{len(rises)} times"
    return f"{text}, but rose {times} from one save to the next, by at most {number(rises.max(), 3)}."


def has_balance(path: Path) -> bool:
    """Whether the energy lost can be compared with the energy dissipated.

    Steps without a largest size follow no flow in time, and a balance of theirs would say nothing.
    """
    return {"energies", "dissipated"} <= set(path.records) and len(path) > 1 and is_timed(path)


def _about_balance(path: Path) -> str:
    balance = path.energy_balance()
    both = f"The energy lost is {number(balance.decrease, 5)} and the energy dissipated {number(balance.dissipated, 5)}"
    if balance.relative_error <= _BALANCED:
        return f"{both}: they agree to within {percent(balance.relative_error)}."
    return (
        f"{both}: they differ by {percent(balance.relative_error)}. For the flow itself they are equal; "
        "the difference is made by the length of the steps."
    )


def about_reference(rows: list[ReferenceRow]) -> str:
    """How many of the quantities agree with their reference."""
    counted = [row.agrees for row in rows if row.agrees is not None]
    if not counted:
        return ""
    good, total = sum(counted), len(counted)
    if total == 1:
        return f"The reference value was {'' if good else 'not '}reached within its tolerance."
    if good == total:
        return f"{'Both' if total == 2 else f'All {total}'} reference values were reached within their tolerances."
    return f"{good} of {total} reference values were reached within their tolerances, and {total - good} not."


def reasons(path: Path) -> dict[str, str]:
    """Why something could not be measured: the names of what was not, joined, by the reason."""
    found: dict[str, list[str]] = {}
    for name, reason in path.unavailable.items():
        found.setdefault(" ".join(reason.split()), []).append(name.replace("_", " "))
    return {reason: " and ".join(names) for reason, names in found.items()}


def percent(fraction: float) -> str:
    """A fraction as percent with two digits, or as it is where percent would be hard to read."""
    return (
        f"{number(100 * fraction, 2)} %" if fraction == 0 or fraction >= 1e-5 else f"{number(fraction, 2)} (relative)"
    )


def _digits_that_differ(reached: Any, reference: Any) -> tuple[int, bool]:
    """Enough significant digits to see where two numbers part, two more than agree, from 5 to 12; and if they do."""
    if isinstance(reached, str) or isinstance(reference, str):
        return 5, False
    a, b = float(reached), float(reference)
    size = max(abs(a), abs(b))
    if not (math.isfinite(size) and a != b):
        return 12, False
    return int(min(max(math.ceil(-math.log10(abs(a - b) / size)) + 2, 5), 12)), True


def _text(value: Any, digits: int, keep_zeros: bool = False) -> str:
    return value if isinstance(value, str) else number(value, digits, keep_zeros=keep_zeros)
