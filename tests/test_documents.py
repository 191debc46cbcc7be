"""README and docs tell the truth: their code runs, their table is the library's, their links lead somewhere."""

import pathlib
import re

import pytest
from typer.testing import CliRunner

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), flags=re.DOTALL)


def test_the_python_of_the_readme_runs_from_top_to_bottom():
    names = {}
    for block in blocks(ROOT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), names)
    pde, jko, sde = names["path"], names["jko"], names["sde"]
    # Three representations of one flow: the JKO path is first order in its step, the particles are 2000 draws.
    mean = float(pde.final.state.mean()[0])
    assert abs(float(jko.final.state.mean()[0]) - mean) < 0.1
    assert abs(float(sde.final.state.mean()[0]) - mean) < 0.15


@pytest.mark.xdist_group("table of combinations")
def test_the_table_of_combinations_is_what_the_library_answers():
    from thalweg.cli._combinations import as_markdown

    text = (ROOT / "README.md").read_text()
    shown = re.search(r"<!-- combinations: begin -->\n(.*?)<!-- combinations: end -->", text, flags=re.DOTALL)
    assert shown is not None
    assert shown.group(1).strip() == as_markdown().strip()


def test_the_problem_file_of_the_docs_runs(tmp_path, monkeypatch):
    from thalweg.cli._app import app

    document = ROOT / "docs" / "command_line.md"
    (tmp_path / "model.py").write_text(blocks(document, "python")[0])
    (tmp_path / "double_well.toml").write_text(blocks(document, "toml")[0])
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, ["run", "double_well.toml", "--out", "out", "--no-report"])
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "out" / "path.nc").exists()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target
