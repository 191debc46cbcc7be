"""The report is one page that says everything, loads nothing and believes no text that it is given."""

import base64
import dataclasses
import html.parser
import io
import json
import pathlib
import re
import shutil
import subprocess

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from plot_helpers import made_path, path_of

import thalweg as tw
from thalweg._saves import Saves
from thalweg.plotting import ReferenceRow, _report, write_figures, write_report
from thalweg.plotting._words import findings, outcome, reference_rows

SETTINGS = {"energy": {"name": "KL", "scale": 0.1 + 0.2}, "state": {"shape": [24], "save_every": 1}}
ROWS = [
    ("mass", 1.0, 1.0, 0.0, True),
    ReferenceRow("mean", 0.512345, 0.5, 0.012345, "not within 2 standard errors"),
    ("b1", 238.942129179, 238.942129180, 4.2e-12, "within 11 digits"),
    ("evidence", -31.3, "unknown", "", "estimated only"),
]
VOID = {"meta", "img", "input", "br", "link"}


class Page(html.parser.HTMLParser):
    """A page read strictly: every element is closed where it should be."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data
            if self.open[-1] not in ("script", "style"):
                self.words.append(data)

    def ids(self) -> list[str]:
        return [attrs["id"] for _, attrs in self.elements if attrs.get("id")]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    def says(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A report with everything in it."""
    return write_report(
        tmp_path_factory.mktemp("run") / "new" / "report.html",
        path_of("line"),
        title="A <b>bold</b> run & more",
        settings=SETTINGS,
        reference=ROWS,
        code="path = tw.flow(energy, state)  # a < b",
        notes=["A note of the user."],
        reference_energy=-0.919,
        num_frames=4,
    )


@pytest.fixture(scope="module")
def page(report: pathlib.Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def test_a_report_has_every_section(page: Page):
    assert [name for name in page.ids() if name != "frames"] == [
        "result",
        "animation",
        "reference",
        "energy",
        "states",
        "what-was-run",
        "not-available",
        "automatic-choices-and-timings",
        "the-same-run-in-python",
        "notes",
    ]
    headings = len(page.all("h2"))
    assert headings == 10


def test_a_report_loads_nothing(report: pathlib.Path, page: Page):
    text = report.read_text(encoding="utf-8")
    for attribute in ("src", "href", "action", "data", "poster", "srcset"):
        for _, attrs in page.elements:
            assert attribute not in attrs or (attrs[attribute] or "").startswith("data:image/png;base64,")
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|<object", text)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_a_report_says_what_was_run_and_what_came_of_it(page: Page):
    path = path_of("line")
    said = page.says()
    assert "The flow reached its last step or its final time." in said
    assert f"steps {int(path.final.num_steps)}" in said
    assert "The energy fell from" in said
    assert "and never rose from one save to the next." in said
    assert "energy dissipated" in said
    assert "name KL" in said
    assert "scale 0.3 " in said
    assert "save every 1" in said
    assert "path = tw.flow(energy, state) # a < b" in said
    assert "A note of the user." in said
    assert path.stats["distances_squared"] in said


def test_every_row_of_the_reference_has_its_verdict(page: Page):
    said = page.says()
    assert "mass 1 1 0 within" in said
    assert "mean 0.51235 0.50000 0.012 not within 2 standard errors" in said
    # As many digits as show where the two part.
    assert "b1 238.942129179 238.942129180 4.2×10⁻¹² within 11 digits" in said
    assert "evidence −31.3 unknown estimated only" in said
    assert "2 of 3 reference values were reached within their tolerances, and 1 not." in said
    pills = [a["class"] for a in page.all("span")]
    assert pills == ["pill good", "pill good", "pill bad", "pill good", "pill"]


def test_texts_from_outside_stay_texts(tmp_path: pathlib.Path):
    evil = '</script></style><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\'"'
    path = path_of("line")
    path = dataclasses.replace(
        path,
        saves=Saves(path.times, path.states, path.records, {evil: jnp.arange(9.0)}),
        unavailable_items=((evil, evil),),
        stats_items=(*path.stats_items, (evil, evil)),
    )
    file = write_report(
        tmp_path / "r.html",
        path,
        title=evil,
        settings={evil: {evil: evil}},
        reference=[(evil, evil, evil, evil, evil)],
        code=evil,
        notes=[evil],
        num_frames=2,
    )
    page = Page(file.read_text(encoding="utf-8"))
    assert len(page.all("script")) == 2
    assert all((a.get("src") or "").startswith("data:") and "onerror" not in a for a in page.all("img"))
    assert page.text["h1"] == evil
    assert page.text["title"] == evil
    assert page.text["code"] == evil


def frames_of(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="frames">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_without_scripts_the_end_of_the_path_is_shown(report: pathlib.Path, page: Page):
    data = frames_of(report.read_text(encoding="utf-8"))
    assert len(data["frames"]) == len(data["labels"]) == 4
    assert (data["labels"][0], data["labels"][-1]) == ("t = 0", "t = 0.08")
    first = page.all("img")[0]
    assert first["src"] == "data:image/png;base64," + data["frames"][-1]
    assert "t = 0.08" in (first["alt"] or "")
    # The controls appear with the script that serves them.
    (controls,) = [a for a in page.all("div") if a.get("class") == "controls"]
    assert "hidden" in controls


def test_every_picture_is_a_whole_png_with_words_for_it(page: Page):
    pictures = page.all("img")
    # The animation, the energy, the dissipation, the distances, the states.
    assert len(pictures) == 5
    for picture in pictures:
        data = base64.b64decode((picture["src"] or "").removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.width >= 600
        assert picture["alt"]


def test_frames_that_take_too_much_room_are_thinned_to_the_end(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    # Noise does not compress: a frame takes some 50 kB, and seven do not fit.
    points = np.random.default_rng(0).normal(size=(7, 2000, 2))
    path = made_path(states=tw.Particles(jnp.asarray(points)), distances=np.ones(7))
    monkeypatch.setattr("thalweg.plotting._report._FRAME_BYTES", 200_000)
    file = write_report(tmp_path / "r.html", path, title="noise", settings={}, num_frames=7)
    text = file.read_text(encoding="utf-8")
    data = frames_of(text)
    assert data["labels"][-1] == "t = 6"
    assert len(data["labels"]) == len(data["frames"]) in (2, 4)
    assert sum(len(base64.b64decode(frame)) for frame in data["frames"]) <= 200_000
    assert f"{len(data['frames'])} of the 7 saves" in Page(text).says()


def test_the_largest_report_stays_below_three_megabytes():
    # Base64 makes four bytes of three. What is not a frame takes at most half a megabyte: five pictures and the text.
    assert _report._FRAME_BYTES * 4 / 3 + 5e5 < 3e6


def test_what_is_not_available_is_said_with_the_reason(tmp_path: pathlib.Path):
    path = path_of("particles on a line")
    file = write_report(tmp_path / "r.html", path, title="particles", settings={}, num_frames=2)
    page = Page(file.read_text(encoding="utf-8"))
    said = page.says()
    assert "Energies and dissipation rates: the entropy of particles without a density model has no value" in said
    assert "The energy has no value in this representation" in said
    assert "Energy balance" not in said
    assert "No reference answer was given for this problem." in said
    assert len(page.all("img")) == 4


def test_a_run_that_failed_says_so(tmp_path: pathlib.Path):
    path = made_path(np.array([1.0]), rates=np.array([2.0]), states=jnp.ones((1, 2)), distances=np.array([0.0]))
    path = eqx.tree_at(lambda p: p.result, path, tw.RESULTS.non_finite)
    page = Page(write_report(tmp_path / "r.html", path, title="bad", settings={}).read_text(encoding="utf-8"))
    assert page.all("span")[0]["class"] == "pill bad"
    assert "Failed A step produced NaN or infinity" in page.says()
    assert "The energy at the only save is 1." in page.says()


@pytest.mark.parametrize(
    ("result", "word"),
    [
        ("successful", "Done"),
        ("stopped", "Stopped as asked"),
        ("minimum", "At a minimum"),
        ("unbounded", "No lower bound"),
        ("interrupted", "Interrupted"),
        ("left_domain", "Failed"),
    ],
)
def test_the_outcome_is_named(result: str, word: str):
    path = eqx.tree_at(lambda p: p.result, made_path(np.ones(2)), getattr(tw.RESULTS, result))
    assert outcome(path)[1] == word


def test_an_energy_that_rose_is_not_said_to_have_fallen_throughout():
    (said, *_) = findings(made_path(np.array([3.0, 1.0, 1.5, 1.2, 1.3])), [])
    assert (
        said == "The energy fell from 3 to 1.3 over time 4, but rose 2 times from one save to the next, by at most 0.5."
    )


def test_rounding_is_not_a_rise():
    (said, *_) = findings(made_path(np.array([3.0, 1.0, 1.0 + 4e-16])), [])
    assert said.endswith("never rose from one save to the next.")


def test_a_balance_that_does_not_close_is_said_not_to():
    said = findings(made_path(np.array([3.0, 2.0]), dissipated=np.array([1.0, 3.0])), [])
    assert "they differ by 50 %" in said[-1]
    said = findings(made_path(np.array([3.0, 1.0]), dissipated=np.array([0.0, 2.0])), [])
    assert "they agree to within 0 %" in said[-1]


def test_a_row_of_the_wrong_length_is_refused_and_nothing_is_written(tmp_path: pathlib.Path):
    file = tmp_path / "r.html"
    file.write_text("the old one")
    with pytest.raises(ValueError, match="got 3 entries"):
        write_report(file, path_of("line"), title="t", settings={}, reference=[("a", 1.0, 2.0)])
    assert file.read_text() == "the old one"
    assert [f.name for f in tmp_path.iterdir()] == ["r.html"]


def test_a_disk_that_refuses_leaves_the_old_report(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "r.html"
    file.write_text("the old one")

    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(tw.CheckpointError, match="no space left"):
        write_report(file, path_of("line"), title="t", settings={}, num_frames=1)
    assert file.read_text() == "the old one"
    assert [f.name for f in tmp_path.iterdir()] == ["r.html"]


def test_one_row_is_counted_in_the_singular():
    path = made_path(np.array([2.0, 1.0]))
    assert findings(path, reference_rows([("a", 1.0, 1.0, 0.0, True)]))[-1].startswith(
        "The reference value was reached"
    )
    assert "was not reached" in findings(path, reference_rows([("a", 1.0, 2.0, 1.0, False)]))[-1]


def test_figures_are_written_as_files(tmp_path: pathlib.Path):
    files = write_figures(tmp_path / "figures", path_of("line"), title="run")
    assert list(files) == ["overview", "energy", "dissipation", "distances", "states"]
    assert sorted(f.name for f in (tmp_path / "figures").iterdir()) == sorted(f"{name}.png" for name in files)
    for file in files.values():
        with Image.open(file) as image:
            image.load()
            assert image.format == "PNG"
    files = write_figures(tmp_path / "less", path_of("particles on a line"))
    assert list(files) == ["overview", "energy", "distances", "states"]


@pytest.mark.browser
def test_the_player_plays(report: pathlib.Path, tmp_path: pathlib.Path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium")
    probe = """<script>
    const button = document.querySelector(".controls button"), slider = document.querySelector(".controls input");
    const log = [document.querySelector(".controls").hidden, slider.value];
    button.click(); log.push(button.textContent, slider.value);
    setTimeout(() => { log.push(button.textContent, slider.value);
      slider.value = "1"; slider.dispatchEvent(new Event("input"));
      log.push(document.querySelector("output").textContent);
      document.title = JSON.stringify(log); }, 5000);
    </script></body>"""
    probed = tmp_path / "probe.html"
    probed.write_text(report.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=8000 --dump-dom"
    )
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'user'}", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title
    labels = frames_of(report.read_text(encoding="utf-8"))["labels"]
    assert json.loads(title[1]) == [False, "3", "Pause", "0", "Play", "3", labels[1]]
