"""A number that was reached beside the one that is known, and the verdict between them."""

import dataclasses
from typing import Any

TOLERANCES: dict[str, float] = {
    # Means in standard deviations of the reference, standard deviations relative: what a thousand particles give.
    "mean": 0.1,
    "sd": 0.1,
    # Correct significant digits (the log relative error) of a certified parameter.
    "digits": 8.0,
    # L¹ distance of two densities, and differences of their values relative to the largest: a grid of 100 cells.
    "density": 0.01,
    # Energies and points of space, relative to their size where that is above one.
    "energy": 1e-3,
    "point": 1e-3,
}
"""What the table [tolerance] of a problem file may set, with the defaults."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One number that was reached, beside the one that is known.

    `error` is in `unit`s ("sd", "relative", "absolute", "digits"); it meets the tolerance if it is at most, or for
    digits at least, `tolerance`.
    """

    quantity: str
    reached: float
    reference: float
    error: float
    tolerance: float
    unit: str

    @property
    def met(self) -> bool:
        """The verdict; not a number never meets it."""
        return self.error >= self.tolerance if self.unit == "digits" else self.error <= self.tolerance

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return "met" if self.met else "NOT MET"

    @property
    def cells(self) -> dict[str, str]:
        """The row as text by column; the error is said against its tolerance."""
        unit = {"sd": " sd", "relative": " rel.", "digits": " digits"}.get(self.unit, "")
        if self.unit == "digits":
            number = "{:.11g}".format
            error = f"{self.error:.1f} {'≥' if self.met else '<'} {self.tolerance:g}{unit}"
        else:
            number = "{:.5g}".format
            error = f"{self.error:.2g} {'≤' if self.met else '>'} {self.tolerance:g}{unit}"
        numbers = {"reached": number(self.reached), "reference": number(self.reference)}
        return {"quantity": self.quantity, **numbers, "error": error, "verdict": self.verdict}

    def for_report(self) -> tuple[str, str, str, str, str]:
        """The row as `thalweg.plotting.ReferenceRow` takes it."""
        cells = self.cells
        verdict = "within" if self.met else "not within"
        return cells["quantity"], cells["reached"], cells["reference"], cells["error"], verdict

    def as_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return {**dataclasses.asdict(self), "verdict": self.verdict}
