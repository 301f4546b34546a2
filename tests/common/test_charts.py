from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.charts import COLOURS, Interval, Series, bar_chart, histogram, interval_chart, line_chart
from common.html_page import page
from tests.common.html_reader import Page


def points_of(chart: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]
        for line in re.findall(r'points="([^"]*)"', chart)
    ]


def bars_of(chart: str) -> list[tuple[float, float, float]]:
    """Left end, width and height of each."""
    found = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="([\d.]+)"', chart)
    return [(float(x), float(width), float(height)) for x, width, height in found]


def texts_of(chart: str) -> list[tuple[float, float, float, str]]:
    """Left and right end, height and content of each text, seven units a character."""
    texts = []
    for x, y, anchor, text in re.findall(r'<text x="([\d.-]+)" y="([\d.-]+)"(?: text-anchor="(\w+)")?>([^<]*)<', chart):
        extent = 7 * len(text)
        left = float(x) - {"middle": extent / 2, "end": extent, "": 0}[anchor]
        texts.append((left, left + extent, float(y), text))
    return texts


def x_labels(chart: str) -> list[tuple[float, float, float, str]]:
    return [text for text in texts_of(chart) if text[2] == 240]


def y_labels(chart: str) -> list[str]:
    return [text for _, right, y, text in texts_of(chart) if right == 50 and y != 14]


def assert_readable(chart: str) -> None:
    """Texts lie inside the chart, and those on the axis beside one another."""
    width, height = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', chart)[0])
    for left, right, y, _ in texts_of(chart):
        assert left >= 0
        assert right <= width
        assert 0 < y < height
    for one, other in itertools.pairwise(x_labels(chart)):
        assert one[1] <= other[0]


def test_lines_are_drawn_where_their_values_are() -> None:
    chart = line_chart([Series("a", [0, 50, 100], [0.0, 1.0, 0.5])], "step", "loss")
    (points,) = re.findall(r'points="([^"]*)"', chart)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 < y2 < y0  # down is larger in SVG
    assert y0 - y2 == pytest.approx(y2 - y1, abs=0.2)


def test_bars_are_as_high_as_their_values() -> None:
    chart = bar_chart(["1", "2"], {"a": [0.1, 0.4], "b": [0.2, 0.0]}, "level", "share")
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" fill', chart)]
    assert heights[0] > 0
    assert heights == pytest.approx([heights[0] * factor for factor in (1, 2, 4, 0)], abs=0.2)


def test_texts_stay_inside_the_chart_and_colours_in_the_style() -> None:
    series = [Series(f"level {level}", [1, 123_456], [1e-6, 3e-6]) for level in range(9)]
    chart = line_chart(series, "step", "loss")
    assert_readable(chart)
    html = page("name", [chart])
    for index in range(COLOURS):
        assert len(re.findall(rf"--c{index}: #", html)) == 2  # light and dark
    assert set(re.findall(r"var\(--(c\d)\)", chart)) == {f"c{index}" for index in range(COLOURS)}


def test_flat_lines_have_an_axis() -> None:
    assert "<polyline" in line_chart([Series("a", [0], [0.0])], "step", "loss")
    assert "<rect" in bar_chart(["1"], {"a": [0.0]}, "level", "share")


def test_decades_are_equally_far_on_logarithmic_axes() -> None:
    chart = line_chart(
        [Series("a", [1, 10, 1000, 100_000], [1e6, 1e3, 1e3, 1])], "place", "events", log_x=True, log_y=True
    )
    ((a, b, c, d),) = points_of(chart)
    assert c[0] - b[0] == pytest.approx(2 * (b[0] - a[0]), abs=0.2)
    assert d[0] - c[0] == pytest.approx(2 * (b[0] - a[0]), abs=0.2)
    assert b[1] == c[1]
    assert b[1] - a[1] == pytest.approx(d[1] - c[1], abs=0.2)
    assert [label[3] for label in x_labels(chart)] == ["1", "10", "100", "1k", "10k", "100k"]
    assert y_labels(chart) == ["1", "10", "100", "1k", "10k", "100k", "1M"]
    # One axis does not change the other.
    ((e, f, *_),) = points_of(line_chart([Series("a", [1, 10, 1000], [1, 2, 3])], "x", "y", log_x=True))
    assert f[0] > e[0] + 100
    assert y_labels(line_chart([Series("a", [1, 10, 1000], [1, 2, 3])], "x", "y", log_x=True))[0] == "0"


def test_a_short_logarithmic_axis_counts_one_two_five() -> None:
    chart = line_chart([Series("a", [30, 700], [1, 1])], "x", "y", log_x=True)
    assert [label[3] for label in x_labels(chart)] == ["20", "50", "100", "200", "500", "1k"]


def test_what_has_no_place_on_a_logarithmic_axis_is_left_out() -> None:
    chart = line_chart([Series("a", [0, 1, -1, 10, 5], [1, 0, 1, 3, 2])], "x", "y", log_x=True)
    assert len(points_of(chart)[0]) == 3
    chart = line_chart([Series("a", [0, 1, -1, 10, 5], [1, 0, 1, 3, 2])], "x", "y", log_x=True, log_y=True)
    assert len(points_of(chart)[0]) == 2
    assert "no positive finite values" in line_chart([Series("a", [0], [1])], "x", "y", log_x=True)


positive = st.floats(1e-3, 1e12)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_any_line_lies_within_its_axes(points: list[tuple[float, float]], log_x: bool, log_y: bool) -> None:
    xs, ys = zip(*points, strict=True)
    chart = line_chart([Series("a", xs, ys)], "x", "y", log_x=log_x, log_y=log_y)
    assert_readable(chart)
    Page(chart)
    assert 2 <= len(y_labels(chart)) <= 12
    for x, y in points_of(chart)[0]:
        assert 55.9 <= x <= 492.1
        assert 29.9 <= y <= 222.1


def test_large_numbers_are_short_on_the_whole_axis() -> None:
    assert y_labels(bar_chart(["1"], {"a": [400_000]}, "x", "y")) == ["0", "100k", "200k", "300k", "400k"]
    assert y_labels(bar_chart(["1"], {"a": [40_000]}, "x", "y")) == ["0", "10,000", "20,000", "30,000", "40,000"]
    assert y_labels(line_chart([Series("a", [1], [-250_000])], "x", "y"))[0].startswith("-2")


def test_bars_of_a_histogram_stand_on_their_ranges() -> None:
    chart = histogram([0, 10, 20, 60], [1, 4, 2], "x", "y")
    bars = bars_of(chart)
    assert [height for *_, height in bars] == pytest.approx([bars[0][2] * factor for factor in (1, 4, 2)], abs=0.2)
    assert bars[2][1] == pytest.approx(4 * bars[1][1], rel=0.05)
    for (left, width, _), (next_left, *_) in itertools.pairwise(bars):
        assert 0 <= next_left - (left + width) <= 1.2
    titles = re.findall("<title>([^<]*)<", chart)
    assert titles == ["0–10: 1", "10–20: 4", "20–60: 2"]
    assert re.findall("<title>([^<]*)<", histogram([0, 1], [3], "x", "y", titles=["<b>"])) == ["&lt;b&gt;"]


def test_doubling_bins_are_equally_wide_on_a_logarithmic_axis() -> None:
    bars = bars_of(histogram([2**power for power in range(9)], [1] * 8, "x", "y", log_x=True))
    assert [width for _, width, _ in bars] == pytest.approx([bars[0][1]] * 8, abs=0.15)


def test_given_ticks_are_written_where_they_fit() -> None:
    ticks = [(0.5, "outside"), (1, "one"), (1.01, "too near"), (10, "ten"), (100, "end"), (1000, "outside")]
    chart = histogram([1, 10, 100], [1, 1], "x", "y", log_x=True, x_ticks=ticks)
    labels = x_labels(chart)
    assert [text for *_, text in labels] == ["one", "ten", "end"]
    middles = [(left + right) / 2 for left, right, *_ in labels]
    assert middles == pytest.approx([56, 274, 492], abs=0.1)
    assert_readable(chart)


def test_lines_have_the_ticks_that_are_given() -> None:
    ticks = [(0, "none"), (1, "one"), (2, "two"), (3, "outside")]
    chart = line_chart([Series("a", [0, 1, 2], [1.0, 3.0, 2.0])], "x", "y", x_ticks=ticks)
    labels = x_labels(chart)
    assert [text for *_, text in labels] == ["none", "one", "two"]
    middles = [(left + right) / 2 for left, right, *_ in labels]
    assert middles == pytest.approx([x for x, _ in points_of(chart)[0]], abs=0.1)
    assert_readable(chart)
    alone = line_chart([Series("a", [2], [1.0])], "x", "y", x_ticks=ticks)
    assert "<circle" in alone
    assert_readable(alone)


@pytest.mark.parametrize("count", [1, 5, 30, 300, 1000])
def test_many_bars_stay_readable(count: int) -> None:
    labels = [f"1997-{index:05d}" for index in range(count)]
    for chart in (
        bar_chart(labels, {"a": [1.0] * count}, "day", "events"),
        histogram(range(count + 1), [1] * count, "day", "events", x_ticks=list(enumerate(labels))),
    ):
        assert_readable(chart)
        assert 1 <= len(x_labels(chart)) <= 7
        bars = bars_of(chart)
        assert len(bars) == count
        assert min(width for _, width, _ in bars) > 0.2
        Page(chart)


def test_every_number_drawn_is_finite() -> None:
    charts = [
        histogram([1, 2], [0], "x", "y", log_x=True),
        histogram([0, 1], [0.0], "x", "y"),
        line_chart([Series("a", [5, 5], [7, 7])], "x", "y", log_x=True, log_y=True),
        line_chart([Series("a", [1, math.inf], [7, math.nan])], "x", "y", log_x=True),
    ]
    for chart in charts:
        assert not re.search(r"\b(nan|inf)\b", chart)


def dots_of(chart: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)]


def spans_of(chart: str) -> list[tuple[float, float, float]]:
    """Left and right end and height of each interval; lines of the axis are upright."""
    found = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', chart)
    return [(float(a), float(b), float(y)) for a, b, y, other in found if y == other]


def test_intervals_stand_where_their_values_are() -> None:
    chart = interval_chart(
        [
            Interval("a", "test", 0.0, -0.1, 0.1),
            Interval("b < c", "test", 0.2, 0.1, 0.3),
            Interval("b < c", "validation", -0.1),
        ],
        "difference",
    )
    (a, b, c), (span_a, span_b) = dots_of(chart), spans_of(chart)
    assert b[0] - a[0] == pytest.approx(2 * (a[0] - c[0]), abs=0.2)
    assert (span_a[0] + span_a[1]) / 2 == pytest.approx(a[0], abs=0.2)
    assert span_b[0] == pytest.approx(span_a[1], abs=0.2)
    assert a[1] == span_a[2]
    assert a[1] < b[1] < c[1]
    page = Page(chart)
    assert {"a", "b < c", "test", "validation", "difference"} <= set(page.texts)
    assert "b < c, test: 0.2000 (0.1000 … 0.3000)" in page.texts
    assert dark_line_of(chart) == pytest.approx(a[0], abs=0.2)


def dark_line_of(chart: str) -> float:
    """Where the axis' origin is drawn."""
    (found,) = re.findall(r'<line x1="([\d.]+)" [^>]*stroke="var\(--quiet\)"', chart)
    return float(found)


def test_intervals_are_drawn_beside_any_origin() -> None:
    chart = interval_chart([Interval("a", "", 0.98, 0.97, 0.99), Interval("b", "", 1.0)], "NE", origin=1.0)
    _, b = dots_of(chart)
    assert dark_line_of(chart) == pytest.approx(b[0], abs=0.2)
    ((left, right, _),) = spans_of(chart)
    assert right - left > 200, "no room is lost to values that nobody has"


def test_a_row_of_one_value_is_level_with_its_name_and_names_have_room() -> None:
    long = "a variant with a name that is far too long for any chart that has something else to show"
    chart = interval_chart([Interval("x", "one", 1.0), Interval(long, "two", 2.0)], "value")
    names = {text: float(y) for y, text in re.findall(r'y="([\d.]+)" text-anchor="end"><title>([^<]*)</title>', chart)}
    for (_, y), name in zip(dots_of(chart), ("x", long), strict=True):
        assert y == pytest.approx(names[name] - 4, abs=0.1)
    (shown,) = [text for text in Page(chart).texts if text.endswith("…")]
    assert long.startswith(shown[:-1])
    assert 7 * len(shown) < min(x for x, _ in dots_of(chart))


def test_what_is_not_finite_is_left_out_of_intervals() -> None:
    chart = interval_chart([Interval("a", "x", math.nan), Interval("b", "x", 1.0)], "value")
    assert len(dots_of(chart)) == 1
    assert "no finite values" in interval_chart([Interval("a", "x", math.inf)], "value")
    assert not re.search(r"\b(nan|inf)\b", chart)
