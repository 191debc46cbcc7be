"""How far a run has come: a bar in a terminal, a line now and then elsewhere, nothing when quiet. Always on stderr."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Seconds between two lines where there is no terminal.
_BETWEEN_LINES = 10.0


class ProgressBar:
    """A callback for `tw.flow(progress=...)`, and a context around the run."""

    def __init__(self, console: Console, *, quiet: bool):
        self.console = console
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.lines = not quiet and not console.is_terminal
        self.last_line = time.monotonic()
        self.first: tuple[int, float] | None = None
        if not quiet and console.is_terminal:
            self.bar = Progress(
                BarColumn(bar_width=12),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TextColumn("·"),
                TimeRemainingColumn(compact=True),
                console=console,
                transient=True,
            )

    def __enter__(self) -> "ProgressBar":
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("", total=1.0, numbers="compiling")
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, progress: Any) -> None:
        """Show one `tw.Progress`."""
        text = self._numbers(progress)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=progress.fraction, numbers=text)
        elif self.lines and time.monotonic() - self.last_line > _BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.console.print(f"{progress.fraction:4.0%}  t = {progress.time:.4g}  {text}  {progress.seconds:.0f} s")

    def _numbers(self, progress: Any) -> str:
        parts = []
        if progress.energy is not None:
            parts.append(f"F {progress.energy:.5g}")
        if progress.dissipation_rate is not None:
            parts.append(f"−dF/dt {progress.dissipation_rate:.2g}")
        # The first chunk is mostly compiling, so the rate is counted from its end.
        if self.first is None:
            self.first = (progress.num_steps, progress.seconds)
        steps, seconds = progress.num_steps - self.first[0], progress.seconds - self.first[1]
        if steps > 0 and seconds > 0:
            parts.append(f"{_short(steps / seconds)} steps/s")
        return "  ".join(parts)


def _short(rate: float) -> str:
    return f"{rate:.3g}" if rate < 1000 else f"{rate / 1000:.3g}k" if rate < 1e6 else f"{rate / 1e6:.3g}M"
