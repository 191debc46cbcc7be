"""The command starts light, says what it can do, and ends a wrong call with code 2."""

import subprocess
import sys

import pytest
from problem_files import thalweg as thalweg_command

import thalweg
from thalweg.cli._errors import UsageError, at_most_five_lines, nearest

COMMANDS = ("run", "show", "problems", "combinations", "doctor", "demo")
HEAVY = ("jax", "jaxlib", "equinox", "diffrax", "scipy", "matplotlib", "xarray", "numpy")


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['thalweg', '--help']\n"
        "from thalweg.cli import main\n"
        "try: main()\n"
        f"except SystemExit as end: print('code', end.code, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)
    assert done.stdout.strip().splitlines()[-1] == "code 0 []"


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "thalweg", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, f"thalweg {thalweg.__version__}")


@pytest.mark.parametrize(
    "arguments", [("fly",), ("run",), ("run", "a.toml", "--fast"), ("show",), ("run", "x", "--seed=-1")]
)
def test_a_wrong_call_ends_with_code_2(arguments):
    assert thalweg_command(*arguments).exit_code == 2


def test_without_arguments_the_help_is_shown():
    shown = thalweg_command()
    assert all(command in shown.output for command in COMMANDS)


def test_a_missing_extra_is_named_with_the_line_that_installs_it(tmp_path):
    code = "import sys; sys.modules['typer'] = None\nfrom thalweg.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'thalweg[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_message_never_exceeds_five_lines():
    assert at_most_five_lines("\n".join("abcde")) == "a\nb\nc\nd\ne"
    assert len(at_most_five_lines("\n".join("abcdefgh")).splitlines()) == 5
    assert len(str(UsageError("\n".join("abcdefgh"))).splitlines()) == 5


@pytest.mark.parametrize(
    ("word", "right"), [("step_sise", "step_size"), ("STEP_SIZE", "step_size"), ("sovler", "solver")]
)
def test_the_nearest_name_is_offered(word, right):
    assert nearest(word, ["solver", "step_size"]).startswith(f"Did you mean `{right}`?")


def test_no_name_is_offered_where_none_is_near():
    assert "Did you mean" not in nearest("zzz", ["solver", "step_size"])
