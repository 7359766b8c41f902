"""The report page in a real browser: headless Chromium, from file://, without a network."""

import base64
import dataclasses
import hashlib
import html
import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess

import pytest

from t2g_jax.report.contents import Report, Sample, TokenCell
from t2g_jax.report.html import render, write

_SAMPLE = runpy.run_path(
    str(pathlib.Path(__file__).parents[1] / "report" / "sample_report.py"), run_name="sample_report"
)
HOSTILE = _SAMPLE["HOSTILE"]
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = os.environ.get("CHROME") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        explanation = (
            "no Chromium found: `apt-get install -y chromium`, or name one in the environment "
            "variable CHROME"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(explanation)
        pytest.skip(explanation)
    return path


@pytest.fixture
def open_page(browser, tmp_path):
    """Runs the browser on a page; returns what it wrote to stdout. Console messages (script errors,
    violations of the content security policy) fail the test."""

    def run(page: pathlib.Path, *flags: str) -> str:
        done = subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
                "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri(),
            ],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        if console:
            raise AssertionError("\n".join(console))
        return done.stdout

    return run


def driven(page: str, script: str) -> str:
    """The page with a script of the test's own, which its policy would otherwise refuse, and an
    element #outcome with what the script returns, as JSON."""
    script = (
        f"const result = (() => {{{script}}})(); const e = document.createElement('pre');"
        "e.id = 'outcome'; e.textContent = JSON.stringify(result); document.body.append(e);"
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    return page.replace("</body>", f"<script>{script}</script></body>")


@pytest.fixture
def drive(open_page, tmp_path):
    def run(report: Report, script: str, *flags: str):
        path = tmp_path / "driven.html"
        path.write_text(driven(render(report), script), encoding="utf-8")
        dom = open_page(path, "--dump-dom", *flags)
        return json.loads(html.unescape(re.search(r'<pre id="outcome">(.*?)</pre>', dom)[1]))

    return run


def test_everything_renders(open_page, tmp_path):
    dom = open_page(write(_SAMPLE["report"](), tmp_path / "report.html"), "--dump-dom")
    assert dom.count('data-chart="') == 6
    assert dom.count('class="scale"') == 9
    assert dom.count('<article class="card"') == 5
    assert "1–5 of 12" in dom
    assert "not above the floor" in dom
    panes = re.findall(r'<div class="tokens".*?aria-label="([\w ]+),', dom)
    assert panes == ["Predicted span reward", "True label"] * 5
    assert dom.count('class="t poor firm"') > 10
    assert dom.count('class="t good firm"') > 10


def test_hostile_text_does_nothing(drive):
    text = f"{HOSTILE}</script>{HOSTILE}</style></textarea><svg onload=document.title='pwned'>"
    tokens = tuple(TokenCell(piece, -1.0, -1.0, 1.0) for piece in (text, "\n", text))
    sample = Sample(text, text, text, text, 0.0, tokens)
    report = dataclasses.replace(_SAMPLE["report"](0), samples=(sample,), config_yaml=text)
    outcome = drive(
        report,
        """
        const over = new PointerEvent('pointerover', {bubbles: true});
        document.querySelector('.tokens [data-i]').dispatchEvent(over);
        return {title: document.title,
                made: document.querySelectorAll('img, textarea, [onload]').length,
                scripts: document.scripts.length, tip: document.getElementById('tip').textContent,
                tokens: document.querySelector('.tokens').textContent};
        """,
    )
    assert outcome["title"] == report.title
    assert outcome["made"] == 0
    assert outcome["scripts"] == 3  # data, the page's, this test's
    assert outcome["tip"].startswith(f"“{text}”")
    assert outcome["tokens"] == text * 2


def test_the_policy_refuses_a_script_that_is_not_the_pages_own(browser, open_page, tmp_path):
    path = tmp_path / "injected.html"
    path.write_text(
        render(Report("as it was")).replace("</body>", f"{HOSTILE}</body>"), encoding="utf-8"
    )
    with pytest.raises(AssertionError, match="Content Security Policy"):
        open_page(path, "--dump-dom")


def test_colours_follow_the_values(drive):
    tokens = (TokenCell("a", -1.0), TokenCell("b", 0.0), TokenCell("c", 0.5), TokenCell("d", 1.0))
    outcome = drive(
        Report("r", samples=(Sample("s", "p", "c", None, 0.0, tokens),)),
        """
        const tokens = [...document.querySelectorAll('.row .t')];
        return tokens.map(e => getComputedStyle(e).backgroundColor);
        """,
    )
    poor, neutral, half, good = (list(map(float, re.findall(r"[\d.]+", c))) for c in outcome)
    assert poor[0] > poor[2]
    assert good[2] > good[0]
    assert half == [*good[:3], 0.5]
    assert neutral[3] == 0


@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
def test_screenshot(open_page, tmp_path, flags):
    report = dataclasses.replace(_SAMPLE["report"](1), results=(), curves=(), class_scores=())
    page, shot = write(report, tmp_path / "report.html"), tmp_path / "page.png"
    open_page(page, f"--screenshot={shot}", "--window-size=1280,1000", *flags)
    image = pytest.importorskip("PIL.Image").open(shot).convert("RGB")
    assert image.size == (1280, 1000)
    brightness = sum(image.getpixel((2, 2))) / 3
    assert brightness < 40 if flags else brightness > 240
    colours = {colour for _, colour in image.getcolors(maxcolors=1 << 24)}
    wanted = [(28, 92, 150), (152, 72, 14)] if flags else [(138, 190, 236), (246, 176, 120)]
    assert set(wanted) <= colours  # +1 and −1 at full strength


def test_a_grid_looks_like_a_grid_and_prose_wraps(drive):
    text = "1 10 0\n0  1 1\n\n" + "a long sentence that has to wrap somewhere " * 8
    tokens = tuple(TokenCell(piece, 0.0, 0.0) for piece in re.findall(r"\n|[^\n]{1,3}", text))
    outcome = drive(
        Report("r", samples=(Sample("s", "p", "c", None, 0.0, tokens),)),
        """
        const rows = [...document.querySelector('.tokens').children];
        return rows.map(r => [r.textContent, getComputedStyle(r).whiteSpace, r.offsetHeight]);
        """,
    )
    assert [row[0] for row in outcome] == text.split("\n")
    assert [row[1] for row in outcome] == ["pre", "pre", "pre-wrap", "pre-wrap"]
    heights = [row[2] for row in outcome]
    assert heights[0] == heights[1] == heights[2] > 0
    assert heights[3] >= 2 * heights[0]


def test_values_read_out_under_the_pointer_and_the_arrow_keys(drive):
    tokens = (
        TokenCell("one", -0.25, -1.0, 1.5),
        TokenCell("\n", 0.125, 0.0, None),
        TokenCell("two"),
    )
    outcome = drive(
        Report("r", samples=(Sample("s", "p", "c", None, 0.0, tokens),)),
        """
        const [left, right] = document.querySelectorAll('.tokens');
        const tip = document.getElementById('tip'), seen = [];
        const side = e => e.closest('.tokens') === left ? 'left' : 'right';
        const note = () => seen.push([tip.hidden ? '' : tip.textContent,
          [...document.querySelectorAll('.t.on')].map(side)]);
        const over = new PointerEvent('pointerover', {bubbles: true});
        left.children[0].children[0].dispatchEvent(over);
        note();
        left.dispatchEvent(new PointerEvent('pointerleave'));
        note();
        for (const key of ['ArrowRight', 'ArrowRight', 'End', 'Escape']) {
          right.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
          note();
        }
        return seen;
        """,
    )
    both = ["left", "right"]
    first = "“one”token 1 of 3Predicted span reward−0.250True label−1Advantage+1.500"
    assert outcome == [
        [first, both],
        ["", []],
        [first, both],
        ["“↵”token 2 of 3Predicted span reward+0.125True label0", both],
        ["“two”token 3 of 3no value", both],
        ["", []],
    ]


def test_charts_read_out_values(drive):
    outcome = drive(
        _SAMPLE["report"](0),
        """
        const chart = document.querySelector('[data-chart="0"]');
        const box = chart.getBoundingClientRect();
        const right = {clientX: box.right - 14, clientY: box.top + 40, bubbles: true};
        chart.dispatchEvent(new PointerEvent('pointermove', right));
        const tip = document.getElementById('tip').innerText;
        const count = () => chart.querySelectorAll('.cross').length;
        const crosses = count();
        chart.dispatchEvent(new PointerEvent('pointerleave'));
        return {tip, crosses, after: count()};
        """,
    )
    curves = [c for c in _SAMPLE["report"](0).curves if c.metric == "shortest_path accuracy"]
    assert "optimizer steps 400" in outcome["tip"]
    for curve in curves:
        assert re.search(rf"{curve.label}\s+{100 * curve.values[-1]:.1f} %", outcome["tip"])
    assert (outcome["crosses"], outcome["after"]) == (1, 0)


def test_five_hundred_samples_stay_usable(drive):
    report = _SAMPLE["report"](500, hostile=False)
    long = tuple(dataclasses.replace(s, tokens=(s.tokens * 8)[:512]) for s in report.samples)
    outcome = drive(
        dataclasses.replace(report, samples=long),
        """
        const titles = () => [...document.querySelectorAll('.card h3')].map(e => e.textContent);
        const where = () => document.getElementById('where').textContent;
        const set = (id, value, event) => {
          const e = document.getElementById(id); e.value = value; e.dispatchEvent(new Event(event));
        };
        const seen = {}, began = performance.now();
        seen.first = [where(), titles()];
        document.getElementById('next').click();
        seen.next = [where(), titles()];
        set('sort', 'low', 'change');
        seen.low = document.querySelector('.card header b').textContent;
        set('sort', 'gap', 'change');
        seen.gaps = [...document.querySelectorAll('.card header span:last-child b')]
          .map(e => +e.textContent);
        set('sort', 'order', 'change');
        set('find', 'SLF5K 49', 'input');
        seen.found = [where(), titles()];
        set('find', 'no such text', 'input');
        seen.none = [where(), document.getElementById('cards').textContent];
        set('find', '', 'input');
        document.querySelector('input[value=advantage]').click();
        seen.panes = [...document.querySelectorAll('.pane h4')].map(e => e.textContent);
        seen.took = performance.now() - began;
        seen.nodes = document.getElementsByTagName('*').length;
        return seen;
        """,
    )
    assert outcome["first"][0] == "1–5 of 500"
    assert outcome["first"][1][0] == "#1binary_matrix 0"
    assert outcome["next"][0] == "6–10 of 500"
    assert outcome["next"][1][0].startswith("#6")
    assert outcome["low"] == "−1.00"
    assert outcome["gaps"] == sorted(outcome["gaps"], reverse=True)
    assert outcome["found"][0] == "1–3 of 3 (500 in all)"
    assert outcome["found"][1][0] == "#492slf5k 491"
    assert outcome["none"] == ["0 of 500", "No sample matches."]
    assert outcome["panes"] == ["Advantage"] * 5
    assert outcome["nodes"] < 10_000  # a page of samples, not all 256,000 tokens
    assert outcome["took"] < 5_000


def test_a_link_opens_its_sample(drive):
    outcome = drive(
        _SAMPLE["report"](23),
        """
        history.replaceState(null, '', '#sample-17');
        dispatchEvent(new HashChangeEvent('hashchange'));
        const [where, card] = ['where', 'sample-17'].map(id => document.getElementById(id));
        return [where.textContent, card !== null];
        """,
    )
    assert outcome == ["16–20 of 23", True]


def test_small_screens_do_not_scroll_sideways(drive):
    script = "return [document.documentElement.scrollWidth, innerWidth];"
    width, inner = drive(_SAMPLE["report"](), script, "--window-size=500,900")
    assert width <= inner
