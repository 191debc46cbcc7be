"""The command line: `thalweg run problem.toml` and its companions.

This module is what the `thalweg` command imports first. It asks for typer and rich only, and for JAX not before a
command needs it, so that `thalweg --help` answers at once.
"""

import sys

_EXTRA = ("typer", "rich", "matplotlib", "PIL", "xarray", "h5netcdf", "h5py")


def main() -> None:
    """Run the command line and leave the process with its exit code.

    0: done; 1: a numerical failure (the partial path is saved), or a reference value that `thalweg demo` did not meet;
    2: usage; 130: interrupted (the partial path is saved).
    """
    try:
        from thalweg.cli._app import run_app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        print(missing_extra(error.name), file=sys.stderr)
        sys.exit(2)
    sys.exit(run_app())


def missing_extra(name: str) -> str:
    """The message for a package that only the command line needs."""
    return f"The command line needs the package `{name}`, which is not installed.\nRun: pip install 'thalweg[cli]'"
