import base64
import dataclasses
import hashlib
import html.parser
import importlib.resources
import json
import math
import re

import numpy as np
import pytest

from t2g_jax.report.contents import (
    Curve,
    JudgeUse,
    MadeWith,
    PhaseTime,
    Report,
    ResultRow,
    Retry,
    Sample,
    TokenCell,
)
from t2g_jax.report.html import advantage_scale, render, write

ASSETS = importlib.resources.files("t2g_jax.report") / "assets"


class Page(html.parser.HTMLParser):
    """Elements, attributes and text of a page, as a browser's parser would see them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.leaf = [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.leaf = len(self.elements) - 1

    def handle_endtag(self, tag):
        self.leaf = None

    def handle_data(self, data):
        if self.leaf is not None:
            self.text[self.leaf] = self.text.get(self.leaf, "") + data

    def all(self, tag):
        """(attributes, text before the first child or the end) of every such element."""
        return [(a, self.text.get(i, "")) for i, (t, a) in enumerate(self.elements) if t == tag]

    def data(self):
        (text,) = [text for a, text in self.all("script") if a.get("id") == "data"]
        return json.loads(text)


@pytest.fixture(scope="module")
def page(sample_report):
    return Page(render(sample_report()))


def visible(text):
    """Markup taken away, spaces of every kind made plain."""
    return " ".join(
        html.unescape(re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", text, flags=re.S)).split()
    )


def test_the_headline_table_says_what_was_measured(sample_report):
    text = visible(render(sample_report()))
    for piece in (
        "RLTF on three reasoning tasks", "11 February 2026, 09:30 UTC",
        "shortest_path floor 38.5 %, always answer “infeasible”", "RLTF-FM",
        "3.4 % 1.8–5.0 90.5 % 87.3–93.7 +87.1 13.9 M 41.7 M 3 h 18 min",
        "38.5 % 33.0–44.0 not above the floor", "Macro F1 80.1 %", "poor (−1) 81.2 %",
        "rollouts 2 h 32 min", "Total 4 h 35 min", "learning_rate: 2.0e-5", "16 × TPU v5 lite",
    ):  # fmt: skip
        assert piece in text, piece
    assert text.count("not above the floor") == 2


def test_positions_on_the_bars_are_the_numbers():
    row = ResultRow("m", "t", 0.25, (0.2, 0.3), 0.75, (0.7, 0.8), 0.5, "guess", 1, 2, 3.0)
    page = Page(render(Report("r", results=(row,))))
    circles = [a for a, _ in page.all("circle") if a["class"].endswith("c0")]
    assert [c["cx"] for c in circles] == ["25.00%", "75.00%"]
    lines = {a["class"]: a for a, _ in page.all("line")}
    assert lines["floor"]["x1"] in ("4", "50.00%")
    assert (lines["interval after c0"]["x1"], lines["interval after c0"]["x2"]) == (
        "70.00%",
        "80.00%",
    )


def test_scores_on_another_scale_are_not_percentages():
    row = ResultRow("SD", "litbench", 4.2, (4.0, 4.4), 8.8, (8.5, 9.0), 5.0, "", 1, 2, 3.0)
    text = visible(render(Report("r", results=(row,))))
    assert "Single-turn score" in text
    assert "8.80 8.50–9.00 +4.60" in text
    assert "scale 0 to 9.45" in text
    assert "floor 5.00" in text


def test_numbers_that_are_missing_are_dashes_not_nan():
    nan = math.nan
    row = ResultRow("m", "t", nan, (nan, nan), 0.5, (nan, nan), nan, "", 0, 0, nan)
    curve = Curve("m", "loss", "steps", (0.0, 1.0), (nan, nan))
    sample = Sample("s", "p", "", None, nan, (TokenCell("a", nan, None, math.inf),))
    text = render(Report("r", results=(row,), curves=(curve,), samples=(sample,)))
    assert "floor not known" in text
    assert "not above the floor" not in text
    assert not re.search(r"\bnan\b", visible(text).lower())
    assert Page(text).data()["samples"][0]["attempts"][0]["advantage"] == [None]


def test_sections_without_contents_are_left_out():
    text = render(Report("only a title"))
    assert re.findall(r'<section id="([\w-]+)"', text) == []
    assert re.findall('href="#([^"]*)"', text) == ["main"]  # which skips to what there is
    assert re.findall(r'<section id="([\w-]+)"', render(Report("r", config_yaml="a: 1"))) == [
        "config"
    ]


def test_every_link_has_its_section(page):
    ids = {a["id"] for _, a in page.elements if "id" in a}
    links = {a["href"][1:] for a, _ in page.all("a")}
    assert len(links) == 9  # with the one that skips to the contents
    assert links <= ids


def test_the_page_is_complete_in_itself_and_runs_only_its_own_code(page, sample_report):
    text = render(sample_report())
    (policy,) = [a["content"] for a, _ in page.all("meta") if a.get("http-equiv")]
    (style,) = [body for _, body in page.all("style")]
    (script,) = [body for a, body in page.all("script") if "type" not in a]
    for name, body in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "style", "srcset"} & set(attributes), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import", style)
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\(", script)
    assert text == render(sample_report())


def test_the_script_never_turns_text_into_markup():
    script = (ASSETS / "report.js").read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", script
    )


def poison(value, text):
    """The same record with every string, wherever it is, replaced."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: poison(getattr(value, f.name), text) for f in dataclasses.fields(value)}
        return type(value)(**fields)
    if isinstance(value, tuple):
        return tuple(poison(item, text) for item in value)
    if isinstance(value, dict):
        return {f"{text} {k}": poison(item, text) for k, item in value.items()}
    return text if isinstance(value, str) else value


@pytest.mark.parametrize(
    "wrap", ["{}", "</script>{}", "</style>{}", "\"'>{}", "<!--<script>{}", "{{{{7*7}}}}{}"]
)
def test_no_text_of_ours_or_a_models_becomes_markup(sample_report, hostile_text, wrap):
    report = sample_report(3)
    names = [tag for tag, _ in Page(render(report)).elements]
    hostile = wrap.format(hostile_text)
    poisoned = Page(render(poison(report, hostile)))
    # One metric and one task name for all: fewer charts and headings, but no new kind of element.
    assert {tag for tag, _ in poisoned.elements} <= set(names)
    assert len(poisoned.all("script")) == 2
    assert len(poisoned.all("style")) == 1
    assert poisoned.data()["samples"][0]["prompt"] == hostile
    assert poisoned.all("title")[0][1] == hostile


def test_embedded_json_holds_the_samples_as_columns(page, sample_report):
    sample, data = sample_report().samples[0], page.data()["samples"][0]["attempts"][0]
    assert "".join(data["text"]) == "".join(token.text for token in sample.tokens)
    assert data["predicted"] == [token.predicted for token in sample.tokens]
    assert data["true"] == [token.true for token in sample.tokens]
    assert data["critique"] == sample.critique
    assert data["reward"] == sample.reward


def test_embedded_json_holds_every_attempt_of_a_conversation():
    retry = Retry((TokenCell("b", None, 1.0, 2.0),), 1.0, correct=True)
    sample = Sample("s", "p", "c", None, 0.0, (TokenCell("a"),), False, "grpo", 3, (retry,))
    (data,) = Page(render(Report("r", samples=(sample,)))).data()["samples"]
    assert (data["method"], data["step"]) == ("grpo", 3)
    first, second = data["attempts"]
    assert (first["text"], first["critique"], first["correct"]) == (["a"], "c", False)
    assert (second["text"], second["critique"], second["correct"]) == (["b"], "", True)
    assert (second["true"], second["advantage"], second["reward"]) == ([1.0], [2.0], 1.0)
    assert advantage_scale([sample]) == 2.0


def test_warnings_stand_at_the_top():
    row = ResultRow("m", "t", 0.25, (0.2, 0.3), 0.75, (0.7, 0.8), 0.5, "guess", 1, 2, 3.0)
    text = render(Report("r", warnings=("entropy <fell>",), results=(row,)))
    assert re.findall(r'<section id="([\w-]+)"', text)[:2] == ["warnings", "results"]
    assert "entropy &lt;fell&gt;" in text


ROW = ResultRow("grpo", "t", 0.25, (0.2, 0.3), 0.75, (0.7, 0.8), 0.5, "guess", 1, 2, 3.0)


def test_the_costs_of_a_method_say_what_they_leave_out():
    times = (PhaseTime("sft", 60.0), PhaseTime("annotate", 3.0), PhaseTime("grpo", 3.0))
    text = visible(render(Report("r", results=(ROW,), phases=times)))
    assert "of the method alone; what it shares with others, or starts from, is under Time" in text
    assert "of the method alone" not in visible(
        render(Report("r", results=(ROW,)))
    )  # no such place


def test_a_time_is_said_once_and_in_the_color_of_its_method():
    times = (PhaseTime("sft", 75.0), PhaseTime("grpo", 3.0))
    page = render(Report("r", results=(ROW,), phases=times))
    (section,) = re.findall(r'<section id="time".*?</section>', page, re.S)
    assert re.findall(r'<rect class="c(\d+)" x=', section) == ["1", "0"]
    assert re.findall(r'<circle class="after c(\d+)"', page) == ["0"]
    text = visible(section)
    assert "sft 1 min 15 s 96.2 % grpo 3.0 s 3.8 % Total 1 min 18 s" in text
    assert "Seconds" not in text


def test_the_floor_is_said_to_solve_nothing():
    text = visible(render(Report("r", results=(ROW,))))
    assert "The floor is that of the best policy that solves nothing." in text
    assert "ignores" not in text


def test_a_column_of_differences_is_there_when_something_differs():
    same = MadeWith("sft", 3, "4 samples")
    column = "Other than the configuration below"
    assert column not in render(Report("r", made_with=(same, same)))
    for different in (
        dataclasses.replace(same, differs=("seed: 1",)),
        dataclasses.replace(same, misfits=("another sft/",)),
    ):
        page = render(Report("r", made_with=(same, different)))
        (table,) = re.findall(r'<table class="made-with">.*?</table>', page, re.S)
        assert column in table
        assert table.count("<td") == 6


def test_half_a_surrogate_pair_does_not_stop_the_page(tmp_path):
    sample = Sample("s", "p", "bad \ud83d half", None, 0.0, (TokenCell("\udc80"),))
    path = write(Report("t \ud83d", samples=(sample,), config_yaml="# \ud83d"), tmp_path / "r.html")
    assert "bad ? half" in path.read_text(encoding="utf-8")


def test_write_makes_folders_and_leaves_no_unfinished_file(tmp_path):
    path = write(Report("r"), tmp_path / "run" / "report.html")
    assert path.read_text(encoding="utf-8") == render(Report("r"))
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_yaml_is_shown_as_it_is(sample_report):
    text = sample_report(0).config_yaml
    shown = re.search(r"<code>(.*?)</code>", render(sample_report(0)), flags=re.S)[1]
    assert html.unescape(re.sub(r"</?b>", "", shown)) == text


def test_advantage_scale_ignores_an_outlier():
    cells = [TokenCell("x", None, None, v) for v in [*np.linspace(-2, 2, 400), 900.0]]
    sample = Sample("s", "", "", None, 0.0, tuple(cells))
    assert 1.9 < advantage_scale([sample]) <= 2.0
    assert advantage_scale([]) == 1.0


# ---- Colors: read from the style sheet, measured by WCAG contrast and simulated color blindness


def palettes():
    css = (ASSETS / "report.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, flags=re.S)[:2]
    read = lambda text: dict(re.findall(r"--([\w-]+):\s*([^;]+);", text))  # noqa: E731
    return {"light": read(light), "dark": read(light) | read(dark)}


def rgb(text):
    if text.startswith("#"):
        return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.array(list(map(float, text.split()))) / 255


def linear(color):
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    a, b = (float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_can_be_read_on_every_ground(mode):
    colors = palettes()[mode]
    ink, card = rgb(colors["ink"]), rgb(colors["card"])
    for strength in np.linspace(0, 1, 11):
        for tint in ("good", "poor"):
            ground = strength * rgb(colors[tint]) + (1 - strength) * card
            assert contrast(ink, ground) >= 4.5, (tint, strength)
    for ground in ("paper", "card", "well"):
        for text in ("ink", "soft", "accent", "warn"):
            assert contrast(rgb(colors[text]), rgb(colors[ground])) >= 4.5, (text, ground)
    for line in [f"s{k}" for k in range(8)] + ["good-edge", "poor-edge"]:
        assert contrast(rgb(colors[line]), rgb(colors["card"])) >= 3, line


# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def lab(color):
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ color / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("kind", BLINDNESS)
def test_good_and_poor_differ_for_everyone(mode, kind):
    colors = palettes()[mode]
    seen = [
        lab(np.clip(np.array(BLINDNESS[kind]) @ linear(rgb(colors[name])), 0, 1))
        for name in ("good", "poor", "card")
    ]
    assert np.linalg.norm(seen[0] - seen[1]) > 30
    assert min(np.linalg.norm(seen[0] - seen[2]), np.linalg.norm(seen[1] - seen[2])) > 20


def test_the_reliability_table_has_a_row_for_each_bin(sample_report):
    page = render(sample_report(0))
    (table,) = re.findall(r'aria-label="Calibration table">(.*?)</div>', page, re.S)
    rows = re.findall(r'<th scope="row">(.*?)</th>\s*(.*?)</tr>', table, re.S)
    assert [name.replace("\u202f", " ") for name, _ in rows] == ["0–10 %", "40–50 %", "90–100 %"]
    for _, cells in rows:
        assert cells.count("<td") == 9
    assert "46.0\u202f%" in rows[1][1]
    plain = dataclasses.replace(sample_report(0), calibration=())
    assert "Calibration table" not in render(plain)


def test_what_was_asked_of_the_judge():
    asked = JudgeUse(
        "annotate",
        calls=40,
        cached=3,
        failures={"timeout": 7, "<b>no answer</b>": 3},
        quotes=80,
        unaligned=20,
        examples=("<script>1</script>: not found",),
    )
    report = Report("r", judge=(asked, JudgeUse("evaluate", calls=8)))
    assert Report.from_json(report.to_json()) == report
    page = render(report)
    assert '<a href="#judge">Judge</a>' in page
    for piece in ("7 timeout, 3 &lt;b&gt;no answer", "25.0", "&lt;script&gt;1", "annotate"):
        assert piece in page
    assert "<script>1" not in page
    assert "#judge" not in render(Report("r"))
