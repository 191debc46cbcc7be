"""Every example runs, in an empty directory, and ends in a picture."""

import pathlib
import runpy

import jax
import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parent.parent / "examples").glob("*.py"))


def test_there_are_examples():
    assert len(EXAMPLES) >= 9


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_under_forty_lines_and_says_its_idea_first(example):
    lines = example.read_text().splitlines()
    assert len(lines) < 40
    assert lines[0].startswith('"""')
    assert lines[0].endswith('"""')


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_leaves_its_picture(example, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="pictures need the extra thalweg[plot]")
    image = pytest.importorskip("matplotlib.image", reason="pictures need the extra thalweg[plot]")
    monkeypatch.chdir(tmp_path)
    # As a user runs it: with JAX's own promotion rules.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(example), run_name="__main__")
    pyplot.close("all")
    pixels = image.imread(tmp_path / f"{example.stem}.png")
    # A blank canvas has no contrast.
    assert pixels.shape[0] > 200
    assert pixels[..., :3].std() > 0.02
