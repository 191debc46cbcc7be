"""Whether thalweg can work here: versions, devices, precision, and a small flow whose answer is known."""

import time
from typing import Any

import jax
from rich.console import Console
from rich.text import Text

import thalweg as tw
from thalweg.cli._environment import EXTRAS, platform_facts, version_of, versions

# Newton's method solves each proximal step to rounding.
_TOLERANCE = 1e-12


def examine() -> dict[str, Any]:
    """What is installed, on what it runs, and whether the small flow is right; `healthy` says whether it is."""
    extras = {name: {package: version_of(package) for package in packages} for name, packages in EXTRAS.items()}
    before = jax.config.read("jax_enable_x64")
    flow = small_flow()
    return {
        "versions": versions(),
        "platform": platform_facts(),
        "precision": {"library": "float64" if before else "float32", "command line": "float64"},
        "extras": extras,
        "small_flow": flow,
        "healthy": flow["error"] <= flow["tolerance"],
    }


def small_flow() -> dict[str, Any]:
    """Ten proximal steps on a quadratic, whose answer is $(I + \\alpha A)^{-10} x_0$."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        started = time.monotonic()
        problem = tw.problems.quadratic(condition_number=10.0)
        assert problem.exact_proximal is not None
        scheme = tw.Proximal(0.1)
        path = tw.flow(problem.energy(), problem.initial_state(), geometry=tw.Euclidean(), scheme=scheme, num_steps=10)
        reached, known = path.final.state, problem.exact_proximal(0.1, 10)
        return {
            "what": "ten proximal steps on a quadratic",
            "reached": [float(x) for x in reached],
            "reference": [float(x) for x in known],
            "error": float(abs(reached - known).max()),
            "tolerance": _TOLERANCE,
            "seconds": round(time.monotonic() - started, 2),
        }
    finally:
        jax.config.update("jax_enable_x64", before)


def print_findings(console: Console, findings: dict[str, Any]) -> None:
    """The findings for a person."""

    def line(label: str, text: str, style: str = "") -> None:
        console.print(Text.assemble((f"{label:<12}", "bold"), (text, style)), soft_wrap=True)

    known = findings["versions"]
    line("thalweg", f"{known['thalweg']} on Python {known['python']}")
    line("built on", ", ".join(f"{name} {v}" for name, v in known.items() if name not in ("thalweg", "python")))
    facts = findings["platform"]
    line("platform", facts["system"])
    line("devices", f"{', '.join(facts['devices'])} (backend {facts['backend']})")
    precision = findings["precision"]
    line(
        "precision",
        f"{precision['library']} in Python, unless you set jax_enable_x64; the command line computes in float64",
    )
    for name, packages in findings["extras"].items():
        missing = [package for package, version in packages.items() if version is None]
        there = ", ".join(f"{package} {version}" for package, version in packages.items() if version)
        hint = f"not installed: {', '.join(missing)} (pip install 'thalweg[{name}]')" if missing else ""
        line(f"[{name}]", "; ".join(part for part in (there, hint) if part), "dim" if missing else "")
    flow = findings["small_flow"]
    verdict = "right" if findings["healthy"] else "WRONG"
    error = f"error {flow['error']:.1e}, tolerance {flow['tolerance']:g}, {flow['seconds']} s"
    line("small flow", f"{flow['what']}: {verdict} ({error})", "green" if findings["healthy"] else "bold red")
