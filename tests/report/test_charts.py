import dataclasses
import math

import numpy as np
import pytest

from t2g_jax.report import charts
from t2g_jax.report.contents import Curve, PhaseTime


def curve(values, label="a", metric="reward", steps=None):
    steps = range(len(values)) if steps is None else steps
    return Curve(label, metric, "optimizer steps", tuple(map(float, steps)), tuple(values))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 400), (-0.3, 0.9), (0.61, 0.62), (1e-7, 3e-7)]
)
def test_ticks_are_round_inside_and_few(low, high):
    ticks = charts.nice_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert low - 1e-12 <= ticks[0]
    assert ticks[-1] <= high + 1e-12
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-3)


def test_one_chart_a_metric_one_line_a_curve_one_color_a_label():
    drawn = charts.charts(
        [
            curve([0, 1], "SD"),
            curve([1, 0], "FM"),
            curve([1, 2], "SD"),
            curve([3, 4], "FM", "KL (nats)"),
        ]
    )
    assert [(chart.title, chart.unit, len(chart.lines)) for chart in drawn] == [
        ("reward", "", 3),
        ("KL", "nats", 1),
    ]
    assert [line.color for line in drawn[0].lines] == [0, 1, 0]
    assert drawn[1].lines[0].color == 1


def test_sixteen_labels_differ_in_color_dash_or_marker():
    (chart,) = charts.charts([curve([0, 1], f"method {k}") for k in range(16)])
    styles = [(line.color % 8, charts.marker(line.color)) for line in chart.lines]
    assert len(set(styles)) == 16


def test_a_phase_has_the_color_of_its_method_or_one_of_its_own():
    curves = [curve([0, 1], "text2grad"), curve([0, 1], "grpo")]
    phases = [PhaseTime(name, 1.0) for name in ("sft", "text2grad", "annotate", "grpo")]
    assert charts.colors(curves, (), phases) == charts.colors(curves) | {"sft": 2, "annotate": 3}


def test_points_are_where_the_data_says():
    (chart,) = charts.charts([curve([0.0, 5.0, 10.0], steps=[0, 50, 100])])
    points = [tuple(map(float, p.split())) for p in chart.lines[0].path[1:].split("L")]
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    np.testing.assert_allclose([x for x, _ in points], [left, (left + right) / 2, right], atol=0.06)
    (low, high), bottom = chart.y_range, charts.HEIGHT - charts.BOTTOM
    expected = [bottom - (v - low) / (high - low) * (bottom - charts.TOP) for v in (0, 5, 10)]
    np.testing.assert_allclose([y for _, y in points], expected, atol=0.06)
    assert chart.lines[0].end == points[-1]


def test_a_value_that_is_not_finite_leaves_a_gap_and_a_lone_point_a_dot():
    (chart,) = charts.charts([curve([1.0, 2.0, math.nan, 3.0, math.inf, 1.0, 2.0])])
    line = chart.lines[0]
    assert line.path.count("M") == 2
    assert len(line.dots) == 1
    (chart,) = charts.charts([curve([math.nan, math.nan])])
    assert chart.lines[0].path == ""
    assert chart.lines[0].end is None
    assert charts.charts([curve([])])[0].lines[0].path == ""


def test_floor_is_drawn_on_accuracy_only_and_only_its_own(sample_report):
    report = sample_report(0)
    own, other, reward = charts.charts(
        [
            curve([0.1, 0.9], metric="binary_matrix accuracy"),
            curve([0.1, 0.9], metric="accuracy"),
            curve([0.1, 0.9], metric="reward"),
        ],
        report.results,
    )
    assert [floor.text for floor in own.floors] == ["floor"]
    assert len(other.floors) == 3
    assert all("floor, " in floor.text for floor in other.floors)
    assert reward.floors == ()
    assert own.as_percent
    assert own.y_range[0] == 0
    assert not reward.as_percent
    unknown = [dataclasses.replace(row, floor=math.nan) for row in report.results]
    assert charts.charts([curve([0.1], metric="accuracy")], unknown)[0].floors == ()
    second = dataclasses.replace(curve([0.1, 0.9], metric="accuracy"), single_turn=False)
    assert charts.charts([second], report.results)[0].floors == ()


def test_thinning_keeps_every_spike_the_ends_and_the_order():
    values = [0.0] * 10_000
    values[4321], values[7777] = 50.0, -50.0
    steps, kept = charts.thin(range(10_000), values)
    assert len(steps) <= charts.MAX_POINTS
    assert list(steps) == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 9_999)
    assert 50.0 in kept
    assert -50.0 in kept
    assert charts.thin((1.0, 2.0), (3.0, 4.0)) == ((1.0, 2.0), (3.0, 4.0))


def test_thinning_a_line_with_gaps():
    values = [math.nan if k % 3 else float(k) for k in range(5_000)]
    steps, kept = charts.thin(range(5_000), values)
    assert all(math.isfinite(v) for v in kept[:-1])
    assert len(steps) <= charts.MAX_POINTS


@pytest.mark.parametrize("values", [[0.5], [3.0, 3.0], [0.0, 0.0], [1e9, 2e9], [-4.0, -2.0]])
def test_every_range_has_a_length_and_readable_ticks(values):
    (chart,) = charts.charts([curve(values)])
    assert chart.x_range[1] > chart.x_range[0]
    assert chart.y_range[1] > chart.y_range[0]
    texts = [tick.text for tick in chart.y_ticks]
    assert len(set(texts)) == len(texts)
    assert all(len(text) <= 7 for text in texts)


def told(text):
    """The number that a tick's text tells."""
    number, _, suffix = text.replace("−", "-").partition("\u202f")
    return float(number) * {"": 1, "%": 1e-2, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[suffix]


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0002], [1e-5, 3e-5], [25_000.0, 25_000.01], [25_000.0, 25_400.0], [-3e-5, -1e-5],
        [-30_000.0, 0.0], [-2.5, 2.5], [0.0, 12_500.0], [1e9, 1e9 + 1e5], [99_950.0, 100_050.0],
        [0.0, 7e-4], [1e-13, 1e-13], [-1e6, 1e6], [0.05, 0.0501], [3e12, 8e12], [12_345.0],
    ],
)  # fmt: skip
@pytest.mark.parametrize("metric", ["reward", "accuracy", "length (tokens)"])
def test_every_tick_tells_its_own_value(values, metric):
    (chart,) = charts.charts(
        [curve(values, metric=metric, steps=[1e5 + v for v in range(len(values))])]
    )
    (low, high), bottom = chart.y_range, charts.HEIGHT - charts.BOTTOM
    assert len(chart.y_ticks) >= 3
    for tick in chart.y_ticks:
        value = low + (bottom - tick.at) / (bottom - charts.TOP) * (high - low)
        assert told(tick.text) == pytest.approx(value, abs=(high - low) / 1000)
    for ticks in (chart.x_ticks, chart.y_ticks):
        texts = [tick.text for tick in ticks]
        assert len(set(texts)) == len(texts)
        assert "-" not in "".join(texts)


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ((0.0, 0.5, 1.0), "0.0 0.5 1.0"),
        ((-0.5, 0.0, 0.5), "−0.5 0.0 0.5"),
        ((0, 5_000, 10_000), "0 5\u202fk 10\u202fk"),
        ((-20_000, -10_000), "−20\u202fk −10\u202fk"),
        ((24_999.0, 24_999.5, 25_000.0), "24999.0 24999.5 25000.0"),
        ((0, 5e-6, 1e-5, 1.5e-5), "0 0.5e−5 1.0e−5 1.5e−5"),
        ((1.0, 1.00005, 1.0001), "1.00000 1.00005 1.00010"),
        ((25_500,), "25500"),
        ((0,), "0"),
        ((), ""),
    ],
)
def test_an_axis_writes_its_ticks_in_one_way(ticks, texts):
    assert " ".join(charts.tick_texts(ticks)) == texts


def test_ticks_of_a_share_are_percentages():
    assert charts.tick_texts((0.0, 0.125, 0.25), as_percent=True) == (
        "0.0\u202f%", "12.5\u202f%", "25.0\u202f%",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "values", "at_most"),
    [
        ("completion length (tokens)", [21.1, 21.0, 21.1, 20.6], 0.5),
        ("completion length (tokens)", [0.0, 0.1], 0.1),
        ("Clip fraction", [0.0, 2e-7, 0.0], 0.02),
    ],
)
def test_what_nobody_cares_for_is_no_cliff(metric, values, at_most):
    """In shares of the axis."""
    (chart,) = charts.charts([curve(values, metric=metric)])
    low, high = chart.y_range
    assert low <= min(values) < max(values) <= high
    assert (max(values) - min(values)) / (high - low) <= at_most + 1e-9


@pytest.mark.parametrize("last", [1, 2, 3, 7, 40])
def test_steps_are_counted_in_whole_numbers(last):
    steps = range(1, last + 1)
    (chart,) = charts.charts([curve([0.1 * n for n in steps], steps=steps)])
    assert chart.x_ticks
    assert all(tick.text.replace("\u202f", "").isdigit() for tick in chart.x_ticks)
