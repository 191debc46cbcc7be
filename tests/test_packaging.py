"""What a user installs is whole: versions agree, the licence is there, types and data are in the wheel."""

import importlib.resources
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def package_data() -> set[str]:
    """What the package ships beside its modules, as paths below the root."""
    folder = ROOT / "thalweg" / "problems" / "data"
    return {
        str(file.relative_to(ROOT)) for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_version_is_the_same_everywhere():
    import thalweg

    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest, *_ = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {PROJECT["version"], cited, newest, thalweg.__version__} == {PROJECT["version"]}


def test_the_licence_is_apache_2_in_full():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
    assert "END OF TERMS AND CONDITIONS" in text


def test_constraints_name_versions_and_no_address():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    strange = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9.]+(post\d+)?( ; [\w .'<>=]+)?", line)]
    assert strange == []
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_constraints_hold_every_dependency():
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [
        entry for extra in ("cli", "plot", "arviz", "parquet", "test", "dev") for entry in extras[extra]
    ]
    names = {re.split(r"[\[<>=~! ;]", entry)[0] for entry in wanted} - {"thalweg"}
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert names - pinned == set()


def test_no_lock_file_is_kept():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"uv.lock", "pylock.toml"} <= set(ignored)


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files("thalweg").joinpath("py.typed").is_file()


def test_package_data_are_found_where_the_library_looks_for_them():
    data = importlib.resources.files("thalweg.problems").joinpath("data")
    assert data.is_dir()
    assert any(entry.is_file() for entry in data.iterdir())


def test_the_wheel_holds_modules_types_data_and_licence(tmp_path: Path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "thalweg").rglob("*.py")}
    assert package_data(), "no package data to ship"
    assert modules | package_data() | {"thalweg/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "thalweg = thalweg.cli:main" in entry_points
    assert not [name for name in names if not name.startswith(("thalweg/", "thalweg-"))]
