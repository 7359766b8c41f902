"""The report page as it is used: on a phone, with the keyboard, looking for words, long runs."""

import dataclasses
import math
import pathlib
import re
import runpy

import pytest

from t2g_jax.report.contents import Curve, PhaseTime, Report, ResultRow, Retry, Sample, TokenCell

_SAMPLE = runpy.run_path(
    str(pathlib.Path(__file__).parents[1] / "report" / "sample_report.py"), run_name="sample_report"
)
PHONE = (375, 800)


def all_of(driver, selector):
    return driver.find_elements("css selector", selector)


def one(driver, selector):
    return driver.find_element("css selector", selector)


def texts(driver, selector):
    return [element.get_property("textContent") for element in all_of(driver, selector)]


def look_for(driver, words):
    one(driver, "#find").clear()
    one(driver, "#find").send_keys(words)


def sample_of(*tokens, retries=(), **fields):
    kept = {"critique": "c", "reward": 0.0} | fields
    cells = tuple(TokenCell(t) if isinstance(t, str) else t for t in tokens)
    return Sample("s", "p", kept.pop("critique"), None, kept.pop("reward"), cells, retries=retries,
                  **kept)  # fmt: skip


# --- On a phone


def test_a_table_that_goes_on_says_so_until_its_end_is_seen(open_page):
    driver = open_page(_SAMPLE["report"](1), size=PHONE)
    hint, box = one(driver, "#results .more"), one(driver, "#results .scroll")
    assert hint.is_displayed()
    assert "scroll" in hint.text
    assert "further" in box.get_attribute("class")  # fades at its edge
    assert box.value_of_css_property("mask-image") != "none"
    driver.execute_script("arguments[0].scrollLeft = 1e6", box)
    driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    assert not hint.is_displayed()
    assert "further" not in box.get_attribute("class")
    width, inner = driver.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth]"
    )
    assert width <= inner == PHONE[0]


def test_a_row_of_a_table_keeps_its_name_in_sight(open_page):
    driver = open_page(_SAMPLE["report"](1), size=PHONE)
    for box in all_of(driver, ".scroll"):
        driver.execute_script("arguments[0].scrollLeft = 1e6", box)
        for name in all_of(box, "th[scope=row], thead tr:first-child th:first-child"):
            assert name.rect["x"] == pytest.approx(box.rect["x"], abs=1)
            assert name.value_of_css_property("background-color") == one(
                driver, "body"
            ).value_of_css_property("background-color")
    scrolled = "return [...document.querySelectorAll('.scroll')].some((box) => box.scrollLeft > 50)"
    assert driver.execute_script(scrolled)


@pytest.mark.parametrize(("size", "shown"), [(PHONE, False), ((1280, 1000), True)])
def test_the_key_of_the_bars_is_there_where_they_are(open_page, size, shown):
    driver = open_page(_SAMPLE["report"](1), size=size)
    parts = all_of(driver, "#results .legend, #results .legend-item, #results svg.scale")
    assert len(parts) > 5
    assert {part.is_displayed() for part in parts} == {shown}
    assert "The floor is" in one(driver, "#results").text


def touch(driver, element, *, x=0, y=0, lift=True):
    """A finger on the middle of an element, or (x, y) pixels from it; returns where it is."""
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    box = driver.execute_script(
        "const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.width, b.height]",
        element,
    )
    point = {"x": box[0] + box[2] / 2 + x, "y": box[1] + box[3] / 2 + y}
    send = driver.execute_cdp_cmd
    send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    if lift:
        send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    return point["x"], point["y"]


@pytest.fixture
def phone(open_page, driver):
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield open_page(_SAMPLE["report"](), size=PHONE)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_a_tap_reads_a_value_until_the_next_one(phone):
    def said():
        return one(phone, "#tip").text

    first, second = all_of(phone, ".chart")[:2]
    touch(phone, first)
    assert "optimizer steps" in said()  # though the finger is gone
    assert len(all_of(first, ".cross")) == 1
    touch(phone, second, x=-60)
    assert "optimizer steps" in said()
    assert [len(all_of(chart, ".cross")) for chart in (first, second)] == [0, 1]
    touch(phone, one(phone, "h1"))
    assert said() == ""
    assert all_of(phone, ".cross") == []

    tokens = all_of(phone, ".tokens:first-of-type .t")
    touch(phone, tokens[0])
    assert "token 1 of" in said()
    assert len(all_of(phone, ".tokens .t.on")) >= 2  # in either pane
    touch(phone, tokens[3])
    assert "token 4 of" in said()
    touch(phone, first)
    assert "optimizer steps" in said()
    assert all_of(phone, ".tokens .t.on") == []
    touch(phone, tokens[0])
    phone.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert (said(), all_of(phone, ".tokens .t.on")) == ("", [])
    assert "hover or tap" in one(phone, "#color-key").text


def test_escape_ends_what_the_mouse_reads(open_page):
    from selenium.webdriver import ActionChains

    driver = open_page(_SAMPLE["report"](1))
    chart = one(driver, ".chart")
    ActionChains(driver).scroll_to_element(chart).move_to_element(chart).perform()
    assert "optimizer steps" in one(driver, "#tip").text
    ActionChains(driver).send_keys("\ue00c").perform()
    assert one(driver, "#tip").text == ""
    assert all_of(driver, ".cross") == []


def test_a_finger_that_scrolls_reads_nothing(phone):
    token = one(phone, ".tokens .t")
    x, y = touch(phone, token, lift=False)
    assert "token 1 of" in one(phone, "#tip").text
    send = phone.execute_cdp_cmd
    for distance in range(10, 200, 10):
        moved = {"type": "touchMove", "touchPoints": [{"x": x, "y": y - distance}]}
        send("Input.dispatchTouchEvent", moved)
    send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert one(phone, "#tip").text == ""


def test_a_table_that_fits_says_nothing(open_page):
    driver = open_page(_SAMPLE["report"](1))
    assert not any(hint.is_displayed() for hint in all_of(driver, ".more"))
    assert all_of(driver, ".further") == []


def test_the_first_stop_of_the_keyboard_skips_to_the_contents(open_page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = open_page(_SAMPLE["report"](1), size=PHONE)
    link = one(driver, "a.skip")
    assert link.rect["y"] + link.rect["height"] <= 0  # out of sight
    ActionChains(driver).send_keys(Keys.TAB).perform()
    assert driver.switch_to.active_element == link
    assert link.rect["y"] >= 0
    ActionChains(driver).send_keys(Keys.ENTER).perform()
    assert driver.switch_to.active_element.tag_name == "main"


# --- Charts


def test_two_charts_of_a_title_say_what_differs(open_page):
    def curve(metric, against):
        return Curve("grpo", metric, against, (0.0, 1.0), (0.1, 0.2))

    curves = [curve("accuracy", "steps"), curve("accuracy", "tokens generated"),
              curve("KL (nats)", "steps"), curve("KL (nats)", "tokens generated"),
              curve("reward", "steps")]  # fmt: skip
    driver = open_page(Report("r", curves=tuple(curves)))
    assert texts(driver, "figcaption") == [
        "accuracy over steps", "accuracy over tokens generated",
        "KL nats, over steps", "KL nats, over tokens generated", "reward",
    ]  # fmt: skip


def test_plots_of_a_row_stand_side_by_side(open_page):
    """Though some titles are longer than a line."""
    curves = tuple(
        Curve("grpo", f"Single-turn accuracy of {name}", against, (0.0, 1.0), (0.1, 0.2))
        for name in ("test prompts", "prompts that nobody has ever seen")
        for against in ("steps", "tokens generated")
    )
    driver = open_page(Report("r", curves=curves))
    captions, plots = (all_of(driver, selector)[:3] for selector in ("figcaption", ".chart"))
    assert len({caption.rect["height"] for caption in captions}) > 1
    assert len({plot.rect["y"] for plot in plots}) == 1


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([1.0, 1.0001, 1.0002], "1.00010"),
        ([0.0, 0.5, 1.0], "0.500"),
        ([-2e-5, -1.5e-5, 0.0], "−1.50e−5"),
        ([0.0, 120.0, 240.0], "120.0"),
        ([25_000.0, 25_000.5, 25_002.0], "25000.5"),
    ],
)
def test_a_read_out_tells_values_apart(open_page, values, read):
    curve = Curve("grpo", "reward", "steps", (0.0, 1.0, 2.0), tuple(values))
    driver = open_page(Report("r", curves=(curve,)))
    one(driver, ".chart").send_keys("\ue010", "\ue012")  # End, left arrow
    assert one(driver, "#tip").text.split("\n") == ["steps 1", "grpo", read]


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("KL of sampler and trainer (nats)", [3e-9, 4e-8, 1e-9, 2e-8]),
        ("Groups with equal rewards (share)", [1.0, 1.0 - 6e-8, 1.0, 1.0]),
        ("Reward", [0.1, 0.1 + 1e-8, 0.1 - 1e-8, 0.1]),
        ("Reward", [-1e-9, 1e-9, 0.0, 2e-9]),
        ("Reward", [1e6, 1e6 + 0.06, 1e6, 1e6 - 0.06]),
        ("Completion length (tokens)", [20.0, 20.000002, 20.0, 19.999998]),
    ],
)
def test_rounding_is_drawn_as_a_flat_line(open_page, metric, values):
    curve = Curve("grpo", metric, "steps", (0.0, 1.0, 2.0, 3.0), tuple(values))
    driver = open_page(Report("r", curves=(curve,)))
    path = one(driver, ".chart path.line").get_attribute("d")
    heights = [float(y) for y in re.findall(r" ([\d.]+)", path)]
    assert len(heights) == 4
    assert max(heights) - min(heights) <= 2  # of 236


def test_what_is_small_and_no_rounding_is_drawn(open_page):
    curve = Curve("grpo", "KL (nats)", "steps", (0.0, 1.0), (0.0, 0.004))
    driver = open_page(Report("r", curves=(curve,)))
    first, last = (float(y) for y in re.findall(r" ([\d.]+)",
                   one(driver, ".chart path.line").get_attribute("d")))  # fmt: skip
    assert first - last > 100


def test_sixteen_phases_look_different(open_page):
    """Those that are no methods too, where the colors have been given away."""
    phases = tuple(PhaseTime(f"phase {k}", 1.0) for k in range(16))
    results = tuple(
        ResultRow(f"phase {k}", "t", 0.2, (0.1, 0.3), 0.7, (0.6, 0.8), 0.1, "guess", 1, 2, 3.0)
        for k in range(6)
    )
    driver = open_page(Report("r", results=results, phases=phases))
    for selector in (".stack rect", ".time th rect"):
        looks = {
            (part.value_of_css_property("fill"), part.value_of_css_property("fill-opacity"))
            for part in all_of(driver, selector)
        }
        assert len(looks) == 16


# --- Samples


def test_hits_are_marked_wherever_they_are(open_page):
    tokens = ("The b", "ridge ", "is <b>", "\n", "BRIDGE", " end")
    sample = dataclasses.replace(sample_of(*tokens), prompt="a bridge?", critique="No Bridge.")
    driver = open_page(Report("r", samples=(sample, sample_of("nothing"))))
    assert all_of(driver, "mark") == []
    look_for(driver, "bridge")
    assert texts(driver, ".prompt mark") == ["bridge"]
    assert texts(driver, ".critique mark") == ["Bridge"]
    assert "".join(texts(driver, ".tokens mark")) == "bridgeBRIDGE"  # the first is two tokens
    assert texts(driver, ".row") == ["The bridge is <b>", "BRIDGE end"]
    for hit in all_of(driver, "mark"):
        assert hit.value_of_css_property("background-color") == "rgba(255, 226, 122, 1)"
    look_for(driver, "<b>")
    assert "".join(texts(driver, ".tokens mark")) == "<b>"
    assert all_of(driver, ".tokens b") == []
    one(driver, "#find").clear()
    look_for(driver, " ")
    assert all_of(driver, "mark") == []


def test_a_folded_prompt_with_a_hit_is_open(open_page):
    sample = dataclasses.replace(sample_of("x"), prompt="filler " * 200 + "needle")
    driver = open_page(Report("r", samples=(sample,)))
    assert not one(driver, ".prompt").is_displayed()
    look_for(driver, "needle")
    assert one(driver, ".prompt mark").is_displayed()


def conversation(attempts, tokens=3, **last):
    retries = [Retry((TokenCell("word ", None, 1.0),) * tokens, 0.5, f"critique {k}")
               for k in range(1, attempts)]  # fmt: skip
    retries[-1] = dataclasses.replace(retries[-1], **last)
    first = (TokenCell("word ", None, -1.0),) * tokens
    return sample_of(*first, retries=tuple(retries), critique="critique 0")


@pytest.mark.parametrize(
    ("attempts", "tokens", "is_open"),
    [
        (2, 10, [True] * 2),
        (3, 10, [True] * 3),
        (6, 10, [True, *[False] * 4, True]),
        (3, 500, [True, False, True]),
        (3, 1500, [False, False, True]),
    ],
)
def test_long_conversations_fold(open_page, attempts, tokens, is_open):
    driver = open_page(Report("r", samples=(conversation(attempts, tokens),)))
    turns = all_of(driver, ".turn")
    assert [turn.get_attribute("open") is not None for turn in turns] == is_open
    assert len(all_of(driver, ".attempt")) == attempts
    for turn, shown in zip(turns, is_open, strict=True):
        assert turn.find_element("css selector", ".attempt").is_displayed()  # what it came to
        assert turn.find_element("css selector", ".tokens").is_displayed() == shown
    if not all(is_open):
        look_for(driver, "critique 1")
        assert one(driver, ".critique mark").is_displayed()
        look_for(driver, "critique")
        turns[1] = all_of(driver, ".turn")[1]
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", turns[1])
        turns[1].find_element("css selector", "summary").click()
        assert not turns[1].find_element("css selector", ".tokens").is_displayed()


def test_the_weight_of_what_is_distilled_stands_at_its_attempt(open_page):
    driver = open_page(Report("r", samples=(conversation(2, correct=True, distillation=-0.125),)))
    first, second = texts(driver, ".attempt")
    assert "distilled" not in first
    assert "distilled into the first with weight −0.125" in second


def test_advantages_never_stand_under_the_key_of_labels(open_page):
    marked = sample_of(TokenCell("a", None, 1.0, 3.0))
    bare = sample_of(TokenCell("b", None, None, 3.0), TokenCell("c", None, None, -3.0))
    driver = open_page(Report("r", samples=(marked, bare)))

    def said():
        return [
            (one(pane, "h4").text, [key.text for key in all_of(pane, ".pane-key")])
            for pane in all_of(driver, ".pane")
        ]

    def view(name):
        driver.execute_script("arguments[0].click()", one(driver, f"input[value={name}]"))

    view("true")
    key = one(driver, "#color-key").text.replace("\n", " ")
    assert key.startswith("Labels: poor −1 +1 good")
    (label, nothing), (advantage, (own,)) = said()
    assert (label, nothing) == ("True label", [])
    assert advantage == "Advantage"
    assert own.replace("\n", " ") == "discouraged −3.00 +3.00 encouraged"
    view("advantage")
    assert one(driver, "#color-key").text.startswith("discouraged")
    assert said() == [("Advantage", []), ("Advantage", [])]


def test_values_that_are_all_0_are_said_to_be(open_page):
    zero = sample_of(TokenCell("a", None, 0.0, 0.0), TokenCell("b", None, 1.0, 0.0))
    driver = open_page(Report("r", samples=(zero, sample_of(TokenCell("a", None, 0.0, 0.5)))))
    views = {}
    for view in ("true", "advantage"):
        driver.execute_script("arguments[0].click()", one(driver, f"input[value={view}]"))
        views[view] = texts(driver, ".pane h4")
    assert views == {
        "true": ["True label", "True label, 0 on every token"],
        "advantage": ["Advantage, 0 on every token", "Advantage"],
    }


def test_labels_never_stand_under_the_key_of_advantages(open_page):
    marked, bare = sample_of(TokenCell("a", None, 1.0)), sample_of(TokenCell("b", None, None, 3.0))
    driver = open_page(Report("r", samples=(marked, bare)))
    driver.execute_script("arguments[0].click()", one(driver, "input[value=advantage]"))
    assert one(driver, "#color-key").text.startswith("Advantage:")
    assert [key.text.replace("\n", " ") for key in all_of(driver, ".pane-key")] == [
        "poor −1 +1 good"
    ]


# --- Borders

BORDERS = """
const rgba = (text) => {
  const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
  return [r / 255, g / 255, b / 255, a];
};
function ground(element) {
  let below = [1, 1, 1];
  const layers = [];
  for (let e = element; e; e = e.parentElement) {
    layers.unshift(rgba(getComputedStyle(e).backgroundColor));
  }
  for (const [r, g, b, a] of layers) below = [r, g, b].map((c, i) => a * c + (1 - a) * below[i]);
  return below;
}
const found = [];
for (const element of document.body.querySelectorAll("*")) {
  if (!element.checkVisibility() || element.matches(".t, .t *")) continue;
  const style = getComputedStyle(element);
  for (const side of ["Top", "Right", "Bottom", "Left"]) {
    if (style[`border${side}Style`] === "none") continue;
    if (!parseFloat(style[`border${side}Width`])) continue;
    const color = rgba(style[`border${side}Color`]);
    if (color[3]) found.push([element.localName + "." + element.className, color,
                               ground(element.parentElement)]);
  }
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_borders_can_be_seen(open_page, scheme):
    """WCAG 2.2, 1.4.11: 3 : 1, of what separates one thing from another."""
    found = open_page(_SAMPLE["report"](5), scheme=scheme).execute_script(BORDERS)
    assert {name.split(".")[0] for name, *_ in found} >= {"nav", "td", "article", "select", "input"}
    pale = {(name, round(contrast(line, behind), 2)) for name, line, behind in found
            if contrast(line, behind) < 3}  # fmt: skip
    assert pale == set()


def contrast(ink, ground):
    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb[:3]]
        return sum(map(math.prod, zip((0.2126, 0.7152, 0.0722), linear, strict=True)))

    lighter, darker = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_environment_names_what_it_is_given(open_page):
    environment = {"commit": "4f0c2a9d17e4", "devices": "8 × TPU v5 lite", "command": "t2g run <c>"}
    row = ResultRow("m", "t", 0.25, (0.2, 0.3), 0.75, (0.7, 0.8), 0.5, "guess", 1, 2, 3.0)
    driver = open_page(Report("r", results=(row,), environment=environment))
    assert dict(zip(texts(driver, "dt"), texts(driver, "dd"), strict=True)) == environment
