"""The commands and their options; what they do is imported when they run, so that help needs no JAX."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from thalweg.cli._errors import ExitCode, UsageError, at_most_five_lines

app = typer.Typer(
    name="thalweg",
    help="Gradient flows: the whole path from a start to a minimum, for vectors and for probability distributions.",
    epilog="Start with: thalweg demo · thalweg problems · thalweg run double_well",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes, no summary.")]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def run_app() -> int:
    """Run the command line on `sys.argv`; leaves the process itself when a command ends."""
    app()
    return 0


def _print_version(wanted: bool) -> bool:
    if wanted:
        import thalweg

        typer.echo(f"thalweg {thalweg.__version__}")
        raise typer.Exit()
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version


@contextlib.contextmanager
def _errors(debug: bool, as_json: bool = False) -> Iterator[None]:
    """Every way in which a command can end badly, as a short message and an exit code."""
    try:
        yield
    except UsageError as error:
        _complain(str(error), ExitCode.USAGE, debug, as_json, error)
    except KeyboardInterrupt as error:
        _complain("Interrupted.", ExitCode.INTERRUPTED, debug, as_json, error)
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError:
        # The reader of our output has left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(ExitCode.FAILED) from None
    except Exception as error:
        text = f"{type(error).__name__}: {error}\nThis was not foreseen; --debug shows where it arose."
        _complain(at_most_five_lines(text), ExitCode.FAILED, debug, as_json, error)


def _complain(message: str, code: ExitCode, debug: bool, as_json: bool, error: BaseException) -> None:
    if debug:
        import traceback

        traceback.print_exception(error.__cause__ or error)
    typer.echo(message, err=True)
    if as_json:
        typer.echo(json.dumps({"error": message, "exit_code": int(code)}))
    raise typer.Exit(int(code)) from None


@app.command(
    epilog="A problem file has the tables \\[energy], \\[state], \\[geometry], \\[scheme] and \\[run], named as the "
    "Python objects are; a function is named file.py:function. See one: thalweg problems double_well"
)
def run(
    problem: Annotated[
        str,
        typer.Argument(help="A problem file (TOML), the name of a built-in problem, or a run folder to resume."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run folder; if left out, runs/<name>-<n>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in the folder.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The random seed, instead of the file's.")] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Leave out the report and the figures.")] = False,
    quiet: _Quiet = False,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Run a problem and leave a folder: path, report, figures, checkpoint."""
    with _errors(debug, as_json):
        from thalweg.cli._folder import plain
        from thalweg.cli._run import run_document
        from thalweg.cli._show import print_run

        document, out = _document(problem, out, resume)
        # What the user's own code prints must not get between the braces.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            outcome = run_document(
                document,
                out=out,
                resume=resume,
                seed=seed,
                with_report=not no_report,
                quiet=quiet,
                console=Console(stderr=True),
            )
        if as_json:
            typer.echo(json.dumps(plain({"folder": str(outcome.folder), **outcome.record}), allow_nan=False))
        elif not quiet:
            print_run(Console(), outcome.record, outcome.folder)
        if outcome.exit_code is ExitCode.FAILED:
            typer.echo(f"{outcome.record['message']}\nThe path so far is in {outcome.folder}.", err=True)
        raise typer.Exit(int(outcome.exit_code))


def _document(problem: str, out: Path | None, resume: bool) -> tuple[Any, Path | None]:
    """The problem file, the built-in problem, or the run folder of that name."""
    from thalweg.cli._document import read_document

    path = Path(problem)
    if path.is_dir():
        if not (path / "problem.toml").is_file():
            raise UsageError(f"{problem} is not a run folder: it has no problem.toml.")
        if not resume:
            raise UsageError(f"{problem} is a run folder. To go on with it: thalweg run {problem} --resume")
        return read_document(path / "problem.toml"), out or path
    if path.suffix or path.exists() or os.sep in problem:
        return read_document(path, problem), out
    from thalweg.cli._template import named_document

    return named_document(problem), out


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Show what a run came to."""
    with _errors(debug, as_json):
        from thalweg.cli._show import print_run, read_run

        record = read_run(folder)
        if as_json:
            typer.echo(json.dumps({"folder": str(folder), **record}))
        else:
            print_run(Console(), record, folder)


@app.command()
def problems(
    name: Annotated[str | None, typer.Argument(help="A problem, to print its problem file.")] = None,
    debug: _Debug = False,
) -> None:
    """List the built-in problems, or print the problem file of one."""
    with _errors(debug):
        from thalweg.cli._template import about, regressions, template

        if name is not None:
            typer.echo(template(name), nl=False)
            return
        from rich.table import Table

        from thalweg import problems as known

        table = Table(box=None, pad_edge=False, show_header=False)
        for entry in known.names():
            if entry not in regressions():
                table.add_row(Text(entry, style="bold"), Text(about(entry)))
        table.add_row(
            Text("NIST regressions", style="bold"), Text("Answers certified to 11 digits: " + ", ".join(regressions()))
        )
        console = Console()
        console.print(table)
        console.print(Text("\nRun one: thalweg run NAME.   Get its file: thalweg problems NAME > NAME.toml"))


@app.command()
def combinations(
    why: Annotated[bool, typer.Option("--why", help="The reason of every empty cell.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
    debug: _Debug = False,
) -> None:
    """What works with what, as the library itself answers."""
    with _errors(debug):
        from thalweg.cli._combinations import as_markdown, find_combinations, print_table, reasons

        found = find_combinations()
        if markdown:
            typer.echo(as_markdown(found))
            return
        console = Console()
        print_table(console, found)
        if why:
            console.print()
            for text in reasons(found):
                console.print(Text(text), soft_wrap=True)


@app.command()
def doctor(as_json: _Json = False, debug: _Debug = False) -> None:
    """Versions, devices, precision, and whether a small flow comes out right."""
    with _errors(debug, as_json):
        from thalweg.cli._doctor import examine, print_findings
        from thalweg.cli._folder import plain

        findings = examine()
        if as_json:
            typer.echo(json.dumps(plain(findings)))
        else:
            print_findings(Console(), findings)
        raise typer.Exit(int(ExitCode.DONE if findings["healthy"] else ExitCode.FAILED))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the run folders and reports go.")] = Path(
        "thalweg-demo"
    ),
    quiet: _Quiet = False,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Run the main job on real data, and print reached beside reference values."""
    with _errors(debug, as_json):
        from thalweg.cli._demo import demo_documents, print_demo, run_demo
        from thalweg.cli._folder import plain

        result = run_demo(demo_documents(), out, quiet=quiet, console=Console(stderr=True))
        if as_json:
            typer.echo(json.dumps(plain(result.as_dict()), allow_nan=False))
        else:
            print_demo(Console(), result)
        raise typer.Exit(int(result.exit_code))
