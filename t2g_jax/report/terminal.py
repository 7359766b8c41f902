"""The report on a terminal, with rich: tables, colored tokens, progress.

Text from a model is only ever put into `rich.text.Text`, never into markup, and what could style or
steer the terminal is made visible first, see `t2g_jax.printing`.
"""

import collections
import contextlib
import contextvars
import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.segment import Segments
from rich.style import Style
from rich.table import Table
from rich.text import Text

from t2g_jax.printing import one_line, visible
from t2g_jax.report import formatting
from t2g_jax.report.contents import Report, TokenCell, reliability_rows

# +1 and −1 at full strength, and the ink on them. Readable on light and dark terminals because both
# colors are set; bold and underline carry the sign where there is no color.
_GOOD, _POOR, _INK_ON_COLOR = (28, 92, 150), (166, 74, 10), "#ffffff"
_NEUTRAL = (64, 68, 72)
COMPILING = "compiling …"
_VISIBLE = 0.2
"""Share of full strength below which a token stays plain."""


def result_table(report: Report) -> Table:
    """Accuracy or mean reward before and after, with intervals, floor and cost, one row a method
    and task. It fits 80 columns. A task that is the only one is named below the table."""
    table = Table(title=_title(report.title), title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    several = len({row.task for row in report.results}) > 1
    table.add_column("Method", no_wrap=True, overflow="fold")
    for name in ("Before", "After", "Gain", "Floor", "Tokens\ntrained", "Time"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in report.results:
        unit = not row.graded and formatting.unit_scale(
            (row.before, row.after, row.floor, *row.before_interval, *row.after_interval)
        )
        if previous not in (None, row.task):
            table.add_section()
        if several and previous != row.task:
            table.add_row(safe_text(row.task, "bold"))
        at_floor = row.after_interval[0] <= row.floor
        table.add_row(
            safe_text(row.method),
            _measured(row.before, row.before_interval, unit, ""),
            _measured(row.after, row.after_interval, unit, "yellow" if at_floor else "bold"),
            _number(formatting.gain(row.before, row.after, unit=unit)),
            _number(formatting.score(row.floor, unit=unit) + ("\nnot above" if at_floor else "")),
            _number(formatting.count(row.tokens_trained)),
            _number(formatting.duration(row.seconds)),
        )
        previous = row.task
    policies = dict.fromkeys(
        f"floor of {row.task}: {row.floor_policy}" for row in report.results if row.floor_policy
    )
    notes = [*policies]
    if graded := dict.fromkeys(row.task for row in report.results if row.graded):
        notes.append(f"{', '.join(graded)} only grades: these are mean rewards of first attempts")
    if notes:
        table.caption = safe_text("\n".join(notes))
        table.caption_justify = "left"
    return table


def print_table(console: Console, table: Table) -> None:
    """Prints a table that fits 80 columns; a narrower terminal breaks its lines, and no number."""
    options = console.options.update(width=max(console.width, 80))
    console.print(Segments(console.render(table, options)), crop=False)


def class_score_table(report: Report) -> Table:
    """The reward model's precision, recall and F1 for each token class."""
    title = _title("Reward model, token by token")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("Label")
    for name in ("Precision", "Recall", "F1", "Tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.class_scores:
        shares = [_number(formatting.percent(v)) for v in (row.precision, row.recall, row.f1)]
        table.add_row(safe_text(row.label), *shares, _number(formatting.count(row.support)))
    return table


def calibration_table(report: Report) -> Table:
    """What the reward model says of each class, and how often it is so, by what it says."""
    title = _title("Reward model, probabilities and what came true")
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False
    )
    table.add_column("Probability", "Error", no_wrap=True)
    for row in report.calibration:
        error = formatting.percent(row.error)
        table.add_column(
            safe_text(f"{row.label}\nsays → is, tokens"), error, justify="right", no_wrap=True
        )
    for low, high, cells in reliability_rows(report.calibration):
        table.add_row(
            f"{100 * low:.0f}–{formatting.percent(high, digits=0)}",
            *(
                f"{100 * cell.predicted:.0f} → {formatting.percent(cell.observed, digits=0)}"
                f" {formatting.count(cell.tokens):>6}"
                if cell
                else ""
                for cell in cells
            ),
        )
    return table


def token_line(
    tokens: Iterable[TokenCell],
    which: Literal["predicted", "true", "advantage"] = "predicted",
) -> Text:
    """A completion with each token on the color of its value: blue good, orange poor.

    Advantages are scaled by the largest |advantage| of these tokens; the other two are in [-1, 1]
    already. Below a fifth of full strength a token stays plain; from half of it, good tokens are
    bold and poor ones underlined. A token without a value is dim.

    Raises:
      ValueError: `which` is not a field of values of TokenCell.
    """
    if which not in ("predicted", "true", "advantage"):
        raise ValueError(f"which is {which!r}; choose 'predicted', 'true' or 'advantage'")
    cells = list(tokens)
    scale = _scale(cells, which)
    line = Text()
    for cell in cells:
        line.append(visible(cell.text), _token_style(getattr(cell, which), scale))
    return line


def marked_line(
    console: Console,
    tokens: Iterable[TokenCell],
    which: Literal["predicted", "true", "advantage"] = "predicted",
) -> Text:
    """`token_line` for a console; one that shows no colors gets marks in the text instead.

    A run of good tokens becomes [+…+], one of poor tokens [−…−], with an ASCII minus where the
    console's encoding has no other. The same tokens are marked as would be colored.
    """
    line = token_line(cells := list(tokens), which)
    if console.color_system is not None and not console.no_color:
        return line
    minus = "-" if console.options.ascii_only else "−"
    signs = {True: "+", False: minus}
    scale = _scale(cells, which)
    marked = Text()
    for sign, run in itertools.groupby(cells, lambda cell: _sign(getattr(cell, which), scale)):
        text = visible("".join(cell.text for cell in run))
        marked.append(f"[{signs[sign]}{text}{signs[sign]}]" if sign in signs else text)
    return marked


def safe_text(text: str, style: str = "") -> Text:
    """Text from anywhere, controls made visible, ready to print."""
    return Text(visible(text), style)


def format_duration(seconds: float) -> str:
    """A time as it is written in a log."""
    return _plain(formatting.duration(seconds))


_FOLLOWED_BY: contextvars.ContextVar[float | None] = contextvars.ContextVar(
    "seconds that a run takes after this phase", default=None
)


@contextlib.contextmanager
def followed_by(seconds: float | None) -> Iterator[None]:
    """While a phase runs: how long the rest of the run takes after it; None: that is not known.

    A `PhaseProgress` then says what is left of the run beside what is left of the phase.
    """
    token = _FOLLOWED_BY.set(seconds)
    try:
        yield
    finally:
        _FOLLOWED_BY.reset(token)


class PhaseProgress:
    """Progress of one phase: a live bar on a terminal, plain lines anywhere else.

    ```python
    with PhaseProgress("rltf", total=400, start=resumed_step) as progress:
        for step in range(resumed_step, 400):
            ...
            progress.update(step + 1, reward=metrics["reward"])
    ```

    Values given to `update` are turned into floats only when they are shown, so that no step waits
    for the device just to be told. One that was not measured in the last step says in which.

    Until the first step is done it says "compiling …". The remaining time is that of the later half
    of the steps of this run, never of the first: that compiles, and so may some of those after it.
    So a single step that took far longer than others does not count as what is to be expected.

    Args:
      phase: its name.
      total: steps until done, None if unknown.
      start: steps done before this run (a resumed phase).
      unit: what `total`, `start` and `step` count, if not steps; such as "tokens".
      console: where to write; a new stderr console if None, so that stdout stays clean.
      every_seconds: without a terminal, a line is printed when these have passed since the last.
      enabled: False shows nothing (every process of a pod but the first).
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        phase: str,
        total: int | None = None,
        *,
        start: int = 0,
        unit: str = "",
        console: Console | None = None,
        every_seconds: float = 10.0,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.phase, self.total, self.start, self.unit = one_line(phase), total, start, unit
        self.step = start
        self._console = console or Console(stderr=True)
        self._every_seconds = every_seconds if not self._console.is_terminal else 0.1
        self._enabled, self._clock = enabled, clock
        self._measures: dict[str, tuple[int, float]] = {}  # the step, and what was measured there
        self._marks: collections.deque[tuple[int, float]] = collections.deque()
        self._paces: collections.deque[float] = collections.deque(maxlen=_MOST)
        self._waiting: threading.Timer | None = None
        self._live: Progress | None = None
        self._bar: TaskID | None = None

    def __enter__(self) -> "PhaseProgress":
        self._began = self._clock()
        self._shown_at, self._shown_step = self._began, self.start
        if self._enabled and self._console.is_terminal:
            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                _Field("measures"),
                _Field("remaining"),
                console=self._console,
                expand=True,
            )
            self._bar = self._live.add_task(
                self.phase,
                total=self.total,
                completed=self.start,
                measures="",
                remaining=COMPILING,
            )
            self._live.start()
        elif self._enabled:
            self._waiting = threading.Timer(
                self._every_seconds, self._print, [f"{self._done()}  {COMPILING}"]
            )
            self._waiting.daemon = True
            self._waiting.start()
        return self

    def update(self, step: int, **measures: float) -> None:
        """Tells that `step` steps are done, with what to show beside them: reward=…, loss=…."""
        self._started()
        self.step = step
        self._measures |= {name: (step, value) for name, value in measures.items()}
        now = self._clock()
        self._mark(step, now)
        if now - self._shown_at >= self._every_seconds and step != self._shown_step:
            self._show(now)

    def note(self, text: str) -> None:
        """A line above the bar, or in its turn."""
        if self._enabled:
            self._print(f"{self.phase}: {one_line(text)}")

    def __exit__(self, kind, error, trace) -> None:
        self._started()
        now = self._clock()
        if self.step != self._shown_step:
            self._show(now)
        if self._live is not None:
            self._live.stop()
        if self._enabled:
            end = "done" if kind is None else f"stopped by {kind.__name__}"
            at = f"{self.step:,} {self.unit}" if self.unit else f"step {self.step}"
            self._print(f"{self.phase}: {end} at {at} after {format_duration(now - self._began)}")

    def _show(self, now: float) -> None:
        self._shown_at, self._shown_step = now, self.step
        if not self._enabled:
            return
        at = "at " if self.unit else "step "
        measures = "  ".join(
            f"{one_line(name)} {_measure(value)}"
            + ("" if step == self.step else f" ({at}{step:,})")
            for name, (step, value) in self._measures.items()
        )
        remaining = self._remaining()
        if self._live is not None:
            self._live.update(
                self._bar, completed=self.step, measures=measures, remaining=remaining
            )
            return
        self._print("  ".join(part for part in (self._done(), measures, remaining) if part))

    def _done(self) -> str:
        share = f" ({100 * self.step / self.total:.1f} %)" if self.total else ""
        if self.unit:
            done = f"{self.step:,}/{self.total:,}" if self.total else f"{self.step:,}"
            done = f"{done} {self.unit}"
        else:
            done = f"{self.step}/{self.total}" if self.total else f"step {self.step}"
        return f"{self.phase}: {done}{share}"

    def _started(self) -> None:
        """The first step is done, or nothing will be."""
        if self._waiting is not None:
            self._waiting.cancel()

    def _mark(self, step: int, now: float) -> None:
        """Keeps when steps were done: those of the later half, and the one before them."""
        if not self._marks:
            self._first = step
        elif step > self._marks[-1][0]:
            self._paces.append(_pace(self._marks[-1], (step, now)))
        self._marks.append((step, now))
        while len(self._marks) > 2 and 2 * (self._marks[1][0] - self._first) <= step - self._first:
            self._marks.popleft()
        if len(self._marks) > _MOST:  # every other one will do; the first and the last stay
            self._marks = collections.deque(itertools.islice(self._marks, 0, None, 2))

    def _remaining(self) -> str:
        if not self.total or not self._marks:
            return ""
        (early, began), (late, ended) = self._marks[0], self._marks[-1]
        if late <= early or ended <= began:
            return ""
        steps = [pair for pair in itertools.pairwise(self._marks) if pair[0][0] < pair[1][0]]
        *others, slowest = sorted(steps, key=lambda pair: _pace(*pair))
        # What took long twice will again, as an evaluation does; once, it was a program compiled.
        usual = 3 * statistics.median_low(self._paces)
        usual = max([usual, *(_pace(*pair) for pair in others[-1:])])
        once = max(_pace(*slowest) - usual, 0.0) * (slowest[1][0] - slowest[0][0])
        seconds = max(self.total - self.step, 0) * (ended - began - once) / (late - early)
        after = _FOLLOWED_BY.get()
        return f"{format_duration(seconds)} left" + (
            "" if after is None else f" (of the run about {format_duration(seconds + after)})"
        )

    def _print(self, line: str) -> None:
        self._console.print(safe_text(line), soft_wrap=True)


# So many moments and paces are kept, and looked through each time that progress is shown.
_MOST = 1000


def _pace(earlier: tuple[int, float], later: tuple[int, float]) -> float:
    """Seconds for each step between two moments at which steps were done."""
    return (later[1] - earlier[1]) / (later[0] - earlier[0])


class _Field(ProgressColumn):
    """A progress column showing one of the task's fields as plain text."""

    def __init__(self, name: str):
        super().__init__()
        self._name = name

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get(self._name, "")))


def _measured(value: float, bounds: tuple[float, float], unit: bool, style: str) -> Text:
    text = _number(formatting.score(value, unit=unit))
    text.stylize(style)
    return text.append(f"\n{formatting.interval(bounds, unit=unit)}", Style(dim=True, bold=False))


def _scale(cells: Sequence[TokenCell], which: str) -> float:
    """The value of full strength."""
    if which != "advantage":
        return 1.0
    values = [getattr(cell, which) for cell in cells]
    return max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0) or 1.0


def _sign(value: float | None, scale: float) -> bool | None:
    """Whether a token counts as good; None: as neither good nor poor."""
    if value is None or not math.isfinite(value) or abs(value) / scale < _VISIBLE:
        return None
    return value > 0


def _token_style(value: float | None, scale: float) -> Style:
    if value is None or not math.isfinite(value):
        return Style(dim=True)
    if _sign(value, scale) is None:
        return Style()
    strength = min(1.0, abs(value) / scale)
    full = _GOOD if value > 0 else _POOR
    mixed = (round(n + (f - n) * strength) for n, f in zip(_NEUTRAL, full, strict=True))
    background = "#{:02x}{:02x}{:02x}".format(*mixed)
    firm = strength >= 0.5
    return Style(
        color=_INK_ON_COLOR,
        bgcolor=background,
        bold=True if firm and value > 0 else None,
        underline=True if firm and value < 0 else None,
    )


def _number(text: str) -> Text:
    return Text(_plain(text))


def _measure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else _plain(formatting.decimal(float(value)))


def _plain(text: str) -> str:
    """Narrow spaces and long minuses are for the page; terminals, logs and grep want plain ones."""
    return text.replace("\u202f", " ").replace("\u2212", "-")


def _title(text: str) -> Text:
    return Text(visible(text), style="bold")
