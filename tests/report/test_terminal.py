import dataclasses
import io
import itertools
import math
import re
import time

import pytest
from rich.console import Console

from t2g_jax.report.contents import Report, TokenCell
from t2g_jax.report.terminal import (
    COMPILING,
    PhaseProgress,
    calibration_table,
    class_score_table,
    followed_by,
    marked_line,
    print_table,
    result_table,
    token_line,
)


def shown(renderable, **options):
    console = Console(file=io.StringIO(), width=140, **options)
    console.print(renderable)
    return console.file.getvalue()


def test_result_table_tells_before_after_floor_and_cost(sample_report):
    text = shown(result_table(sample_report(0)))
    for piece in ("shortest_path", "RLTF-FM", "3.4 %", "90.5 %", "87.3–93.7", "+87.1", "12.4 M"):
        assert piece in text
    assert "floor of binary_matrix: copy the input" in text
    assert text.count("not above") == 2  # the two baselines that equal their floor


def test_class_score_table(sample_report):
    text = shown(class_score_table(sample_report(0)))
    for piece in ("poor (−1)", "81.2 %", "18.2 k"):
        assert piece in text


def test_calibration_table_fits_80_columns(sample_report):
    console = Console(file=io.StringIO(), width=80)
    console.print(calibration_table(sample_report(0)))
    text = console.file.getvalue().replace("\u202f", " ")
    assert "…" not in text
    for piece in ("90–100 %", "96 → 94 %", "142 k", "4.3 %", "100 → 100 %", "1204"):
        assert piece in text
    (row,) = [line for line in text.splitlines() if line.strip().startswith("40–50 %")]
    assert row.split() == ["40–50", "%", "46", "→", "51", "%", "1204"]  # no others have such


def test_missing_numbers_are_dashes(sample_report):
    row = dataclasses.replace(
        sample_report(0).results[0], before=math.nan, before_interval=(math.nan, math.nan),
        floor=math.nan, floor_policy="",
    )  # fmt: skip
    assert "–" in shown(result_table(Report("r", results=(row,))))


def test_tokens_keep_their_text_and_take_their_color():
    tokens = [
        TokenCell("1 1\n", 0.0, 0.0),
        TokenCell(" good", 0.9, 1.0, 4.0),
        TokenCell(" poor", -0.9, -1.0, -1.0),
        TokenCell(" none"),
    ]
    line = token_line(tokens)
    assert line.plain == "1 1\n good poor none"
    styles = {line.plain[s.start : s.end]: s.style for s in line.spans}
    good, poor = styles[" good"], styles[" poor"]
    assert good.bold
    assert not good.underline
    assert poor.underline
    assert not poor.bold
    blue, orange = good.bgcolor.triplet, poor.bgcolor.triplet
    assert blue.blue > blue.red
    assert orange.red > orange.blue
    assert styles[" none"].dim
    # The weak advantage is a quarter of the strongest: colored, but not firm.
    weak = {line.plain[s.start : s.end]: s.style for s in token_line(tokens, "advantage").spans}
    assert weak[" poor"].bgcolor
    assert not weak[" poor"].underline
    with pytest.raises(ValueError, match="'predicted', 'true' or 'advantage'"):
        token_line(tokens, "reward")


MARKED = [
    TokenCell("1", 0.0),
    TokenCell(" go", 0.9),
    TokenCell("od\x1b", 0.3),
    TokenCell(" poor", -0.9),
    TokenCell(" little", -0.1),
    TokenCell(" none"),
]


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ({}, {}, "1[+ good␛+][− poor−] little none"),
        ({"force_terminal": True}, {"NO_COLOR": "1"}, "1[+ good␛+][− poor−] little none"),
        ({"force_terminal": True}, {"TERM": "dumb"}, "1[+ good␛+][− poor−] little none"),
        ({"force_terminal": True}, {"TERM": "xterm"}, "1 good␛ poor little none"),
    ],
)
def test_tokens_are_marked_where_there_is_no_color(options, environment, expected):
    console = Console(file=io.StringIO(), _environ=environment, **options)
    assert marked_line(console, MARKED).plain == expected


def test_marks_where_the_encoding_has_no_minus():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert "[- poor-]" in marked_line(Console(file=file), MARKED).plain


def test_model_text_can_neither_style_nor_steer_the_terminal():
    text = "[bold red]x[/] [/] \x1b]0;pwned\x07 \x1b[2J \x9b2J a\u202eb \ud83d [link=http://x]y"
    line = token_line([TokenCell(text, 1.0)])
    assert "[bold red]x[/] [/]" in line.plain
    assert "␛]0;pwned␇" in line.plain
    out = shown(line, force_terminal=True, color_system="truecolor")
    for bad in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\u202e", "\ud83d"):
        assert bad not in out
    title = shown(result_table(Report("[red]title[/red] \x1b[2J")))
    assert "[red]title[/red]" in title
    assert "\x1b" not in title


def steps_of(console):
    """The lines about steps: how soon it is said that something compiles, is for the machine."""
    return [line for line in console.file.getvalue().splitlines() if COMPILING not in line]


class Steps:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self):
        return self.now


def run(total=400, start=0, stop=None, *, step=10, seconds=3.0, width=200, **options):
    clock, console = Steps(), Console(file=io.StringIO(), width=width)
    with PhaseProgress("rltf", total, start=start, console=console, clock=clock, **options) as bar:
        for done in range(start + step, (stop or total) + 1, step):
            clock.now += seconds
            bar.update(done, reward=0.5)
    return steps_of(console)


def test_plain_lines_every_few_seconds():
    lines = run(every_seconds=30.0)
    assert lines[0] == "rltf: 100/400 (25.0 %)  reward 0.500  1 min 30 s left"
    assert len(lines) == 4 + 1
    assert lines[-1] == "rltf: done at step 400 after 2 min 00 s"


def test_the_last_step_is_always_told_and_long_lines_do_not_wrap():
    assert "390/400" in run(stop=390, every_seconds=1e9, width=20)[-2]


def test_remaining_time_after_resuming_counts_this_run_only():
    # 100 steps took 30 s, 100 are left: 30 s, whatever was done before.
    (first, *_) = run(start=200, every_seconds=30.0)
    assert first.endswith("30.0 s left")


def test_what_is_left_of_the_run_is_said_where_it_is_known():
    with followed_by(60.0):
        (first, *_) = run(every_seconds=30.0)
    assert first.endswith("  1 min 30 s left (of the run about 2 min 30 s)")
    with followed_by(None):
        assert run(every_seconds=30.0)[0].endswith("  1 min 30 s left")
    assert run(every_seconds=30.0)[0].endswith("  1 min 30 s left")


def test_tokens_instead_of_steps():
    lines = run(total=2000, start=1000, step=250, seconds=10.0, every_seconds=0.0, unit="tokens")
    assert lines[0] == "rltf: 1,250/2,000 tokens (62.5 %)  reward 0.500"
    assert lines[1] == "rltf: 1,500/2,000 tokens (75.0 %)  reward 0.500  20.0 s left"
    assert lines[-1] == "rltf: done at 2,000 tokens after 40.0 s"


def test_more_tokens_than_the_budget():
    lines = run(total=2000, stop=2250, step=250, every_seconds=0.0, unit="tokens")
    assert lines[1] == "rltf: 500/2,000 tokens (25.0 %)  reward 0.500  18.0 s left"
    assert lines[-2] == "rltf: 2,250/2,000 tokens (112.5 %)  reward 0.500  0.0 s left"


def timed(*moments, total=10, **options):
    """The lines of a phase whose steps are done at these moments."""
    clock, console = Steps(), Console(file=io.StringIO(), width=200)
    with PhaseProgress(
        "sft", total, console=console, every_seconds=0.0, clock=clock, **options
    ) as bar:
        for step, moment in enumerate(moments, start=1):
            clock.now = moment
            bar.update(step)
    return steps_of(console)


def test_the_time_of_the_first_step_is_not_expected_of_the_others():
    """That compiles."""
    lines = timed(100.0, 101.0, 102.0)
    assert "left" not in lines[0]
    assert lines[1].endswith("8.0 s left")
    assert lines[2].endswith("7.0 s left")


def test_another_step_that_compiles_is_soon_forgotten():
    lines = timed(100.0, 150.0, *(150.0 + i for i in range(1, 9)), total=20)
    assert lines[9].endswith("10.0 s left")


def left(line):
    """The seconds that a line says are left."""
    minutes = re.search(r"(?:(\d+) min )?([\d.]+) s left", line)
    return 60 * int(minutes[1] or 0) + float(minutes[2])


@pytest.mark.parametrize("slow", [3, 4, 7, 20, 60])
def test_one_step_that_compiles_does_not_swing_what_is_left(slow):
    took = (40.0 if step == slow else 0.5 for step in range(2, 81))
    moments = itertools.accumulate(took, initial=30.0)
    lines = timed(*moments, total=100)
    for step, line in enumerate(lines[1:-1], start=2):
        usual = 0.5 * (100 - step)
        assert usual - 1 < left(line) < 3 * usual + 1


def test_steps_that_are_slow_again_and_again_count():
    """As those that evaluate."""
    moments = list(itertools.accumulate(21.0 if step % 10 == 0 else 1.0 for step in range(1, 61)))
    lines = timed(*moments, total=100)
    for step in (40, 50, 60):
        assert left(lines[step - 1]) == pytest.approx(3 * (100 - step), rel=0.35)


def test_a_long_run_is_told_from_a_bounded_number_of_moments():
    """A bar shows what is left ten times a second."""
    clock, console = Steps(), Console(file=io.StringIO(), width=200)
    bar = PhaseProgress("sft", 40_000, console=console, every_seconds=1e9, clock=clock)
    with bar:
        for step in range(1, 20_001):
            clock.now += 21.0 if step % 10 == 0 else 1.0  # as those that evaluate
            bar.update(step)
            assert len(bar._marks) <= 1000
    assert "16 h 40 min left" in console.file.getvalue()


def test_a_measure_says_in_which_step_it_was_measured():
    console = Console(file=io.StringIO(), width=200)
    with PhaseProgress("grpo", 40, console=console, every_seconds=0.0) as bar:
        bar.update(20, loss=-0.5, test_accuracy=0.25, quarantined=10)
        bar.update(21, loss=-0.25)
    lines = steps_of(console)
    assert lines[0].startswith(
        "grpo: 20/40 (50.0 %)  loss -0.500  test_accuracy 0.250  quarantined 10"
    )
    assert "loss -0.250  test_accuracy 0.250 (step 20)  quarantined 10 (step 20)" in lines[1]
    assert all(line.isascii() for line in lines)


def test_compiling_is_said_until_the_first_step_is_done():
    console = Console(file=io.StringIO(), width=200)
    with PhaseProgress("sft", 10, console=console, every_seconds=0.01) as bar:
        deadline = time.monotonic() + 30
        while "compiling" not in console.file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        bar.update(1)
    assert console.file.getvalue().splitlines()[0] == "sft: 0/10 (0.0 %)  compiling …"
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    with PhaseProgress("sft", 10, console=terminal) as bar:
        bar.update(1)
    assert "compiling …" in terminal.file.getvalue()


@pytest.mark.parametrize("tasks", [1, 3])
def test_tables_fit_80_columns(sample_report, tasks):
    report = sample_report(0)
    names = list(dict.fromkeys(row.task for row in report.results))[:tasks]
    rows = tuple(
        dataclasses.replace(row, method="rejection-sampling", before=-12.5, tokens_trained=10**12)
        for row in report.results
        if row.task in names
    )
    for options in ({}, {"force_terminal": True, "color_system": None}):
        console = Console(file=io.StringIO(), width=80, **options)
        console.print(result_table(dataclasses.replace(report, results=rows)))
        console.print(class_score_table(report))
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= 80
        assert text.count("rejection-sampling") == len(rows)
        assert "…" not in text
        assert "−" not in text.replace("(−1)", "")


def test_a_narrow_terminal_breaks_lines_and_leaves_no_number_out(sample_report):
    report, shown = sample_report(0), {}
    for width in (40, 60, 80):
        console = Console(file=io.StringIO(), width=width)
        for table in (result_table(report), class_score_table(report), calibration_table(report)):
            print_table(console, table)
        shown[width] = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert not any("…" in line for line in shown[80])
    assert shown[40] == shown[60] == shown[80]


def test_unknown_total():
    clock, console = Steps(), Console(file=io.StringIO())
    with PhaseProgress("annotate", console=console, every_seconds=0.0, clock=clock) as bar:
        bar.update(7, loss=1.25)
    assert steps_of(console)[0] == "annotate: step 7  loss 1.250"


def test_silent_where_disabled():
    assert run(enabled=False, every_seconds=0.0) == []


def test_notes_stand_on_their_own_lines():
    console = Console(file=io.StringIO(), width=40)
    with PhaseProgress("rltf", 100, console=console) as bar:
        bar.note("step 7: entropy \x1b[31mfell from 0.8 to 0.02 nats, and a long explanation")
    (note, _) = console.file.getvalue().splitlines()
    assert note == "rltf: step 7: entropy ␛[31mfell from 0.8 to 0.02 nats, and a long explanation"
    with PhaseProgress("rltf", 100, console=console, enabled=False) as bar:
        bar.note("nothing")
    assert "nothing" not in console.file.getvalue()


def test_an_error_ends_the_progress_and_passes_through():
    console = Console(file=io.StringIO(), width=200)

    def fail():
        with PhaseProgress("sft", 10, console=console) as bar:
            bar.update(3)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert "stopped by KeyError at step 3" in console.file.getvalue()


def test_values_are_read_only_when_shown():
    """float() of a device array waits for the device."""

    class Pending:
        reads = 0

        def __float__(self):
            Pending.reads += 1
            return 1.0

    clock, console = Steps(), Console(file=io.StringIO())
    with PhaseProgress("rltf", 100, console=console, every_seconds=50.0, clock=clock) as bar:
        for step in range(1, 101):
            clock.now += 1.0
            bar.update(step, reward=Pending())
    assert Pending.reads == 2


def test_live_bar_on_a_terminal():
    clock = Steps()
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with PhaseProgress("[b]rltf", 400, console=console, clock=clock) as bar:
        for step in (100, 200, 300):
            clock.now += 10
            bar.update(step, reward=0.25)
    out = console.file.getvalue()
    for piece in ("[b]rltf", "300/400", "reward 0.250", "10.0 s left", "done at step 300"):
        assert piece in out
