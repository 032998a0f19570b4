"""Charts are well-formed, keep their marks inside, and say in words what they show."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reports.parsed import Parsed

from sostenuto.reports.charts import (
    Point,
    Roof,
    Series,
    Span,
    frontier,
    histogram,
    interval_chart,
    line_chart,
    reliability_chart,
    roofline_chart,
    scatter_chart,
    span_chart,
    strip,
)
from sostenuto.reports.page import picture
from sostenuto.reports.scales import Scale

rates = st.floats(0.0, 1.0)
words = {"title": "A chart", "description": "What it shows"}


def marks_inside(svg):
    parsed = Parsed(svg)
    width, height = (float(v) for v in parsed.values("svg", "viewbox")[0].split()[2:])
    for x, y in zip(parsed.values("circle", "cx"), parsed.values("circle", "cy"), strict=True):
        assert -1 <= float(x) <= width + 1
        assert -1 <= float(y) <= height + 1
    for path in parsed.values("path", "d"):
        assert "nan" not in path
    return parsed


@given(st.lists(st.one_of(st.none(), rates), min_size=1, max_size=6), st.booleans())
def test_line_charts_hold_any_values_and_gaps(values, named):
    series = [Series(label="DIN", colour="c0", x=range(len(values)), y=values)]
    names = [str(i) for i in range(len(values))] if named else ()
    parsed = marks_inside(line_chart(series, y_caption="y", x_names=names, x_details=names, **words))
    assert parsed.tags.count("circle") == sum(v is not None for v in values)


@given(st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=6))
def test_logarithmic_line_charts_hold_any_values_above_zero(values):
    series = [Series(label="DIN", colour="c0", x=[10.0**i for i in range(len(values))], y=values)]
    parsed = marks_inside(line_chart(series, y_caption="ms", logarithmic=True, **words))
    assert parsed.tags.count("circle") == len(values)


def test_on_logarithmic_axes_equal_factors_are_equally_far_apart():
    series = [Series(label="DIN", colour="c0", x=[1, 10, 100], y=[0.1, 1, 10])]
    parsed = Parsed(line_chart(series, y_caption="ms", logarithmic=True, **words))
    for name in ("cx", "cy"):
        first, second, third = (float(v) for v in parsed.values("circle", name))
        assert second - first == pytest.approx(third - second, abs=0.05)


def test_a_gap_breaks_the_line():
    series = [Series(label="a", colour="c0", x=range(5), y=[0.1, 0.2, None, 0.3, 0.4])]
    svg = line_chart(series, y_caption="y", **words)
    assert len([p for p in Parsed(svg).values("path", "class") if p.startswith("line")]) == 2


def test_lines_are_named_at_their_ends_and_nameless_ones_are_not():
    series = [Series(label=name, colour="c0", x=[0, 1], y=[0.1, 0.5]) for name in ("DIN", "", "SDIM")]
    svg = line_chart(series, y_caption="y", **words)
    assert re.findall(r'class="label c0"[^>]*>([^<]*)<', svg) == ["DIN", "SDIM"]


@given(st.lists(st.tuples(rates, rates, rates, st.floats(1e-3, 1e4)), max_size=8))
def test_scatter_and_interval_charts_hold_any_points(rows):
    points = [
        Point(label=f"m{i}", y=y, low=min(y, a), high=max(y, b), x=x, hollow=i % 2 == 0)
        for i, (y, a, b, x) in enumerate(rows)
    ]
    marks_inside(scatter_chart(points, x_caption="ms", y_caption="q", **words))
    parsed = marks_inside(interval_chart(points, x_caption="d", reference=0.0, **words))
    assert parsed.tags.count("circle") == len(points)


@given(st.lists(st.tuples(rates, st.floats(0.01, 100)), min_size=1, max_size=8))
def test_nothing_beats_a_point_of_the_frontier_on_both_axes(rows):
    points = [Point(label="", y=y, x=x) for y, x in rows]
    best = frontier(points)
    for p in best:
        assert not any(q.y > p.y and q.x <= p.x for q in points)
    for p in points:
        assert any(q.y >= p.y and q.x <= p.x for q in best)


def test_a_better_value_stands_higher_and_a_dearer_one_further_right():
    points = [Point(label="cheap", y=0.7, x=1.0), Point(label="dear", y=0.8, x=10.0)]
    parsed = Parsed(scatter_chart(points, x_caption="ms", y_caption="q", **words))
    (x1, x2), (y1, y2) = parsed.values("circle", "cx"), parsed.values("circle", "cy")
    assert float(x1) < float(x2)
    assert float(y1) > float(y2)


def test_reliability_puts_a_calibrated_bin_on_the_diagonal():
    svg = reliability_chart([0.25], [0.25], [0.2], [0.3], [100], reach=0.5, size=200, **words)
    parsed = Parsed(svg)
    x, y = float(parsed.values("circle", "cx")[0]), float(parsed.values("circle", "cy")[0])
    line = next(re.finditer(r'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" class="reference"', svg))
    x1, y1, x2, y2 = (float(v) for v in line.groups())
    assert (x - x1) / (x2 - x1) == pytest.approx(0.5, abs=0.01)
    assert (y - y1) / (y2 - y1) == pytest.approx(0.5, abs=0.01)


def test_bars_are_as_high_as_their_counts():
    parsed = Parsed(histogram(["a", "b", "c"], [10, 20, 0], x_caption="x", **words))
    heights = [float(h) for h in parsed.values("rect", "height")]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.05)
    assert heights[2] == 0


def test_spans_and_strips_are_well_formed():
    spans = [Span(label="log", start=0, end=10, class_="span-log"), Span(label="test", start=9, end=10, class_="x")]
    widths = [float(w) for w in Parsed(span_chart(spans, [(5, "mid")], **words)).values("rect", "width")]
    assert widths[0] == pytest.approx(10 * widths[1], rel=0.01)
    scale = Scale(low=0.7, high=0.9, start=4, end=100)
    marks_inside(strip(Point(label="DIN", y=0.8, low=0.79, high=0.81, small=[0.8, 0.81]), scale, reference=0.75))
    assert "circle" not in Parsed(strip(Point(label="nothing", y=None), scale)).tags


def test_every_chart_says_what_it_is():
    svg = line_chart([Series(label="a", colour="c0", x=[0, 1], y=[0, 1])], y_caption="y", **words)
    parsed = Parsed(svg)
    assert parsed.values("svg", "role") == ["img"]
    assert parsed.values("svg", "aria-label") == ["A chart. What it shows"]
    assert "title" in parsed.tags
    assert "desc" in parsed.tags


rooflines = {"x_caption": "operations per byte", "y_caption": "GFLOP/s", **words}


@given(st.lists(st.tuples(st.floats(1e-3, 1e5), st.floats(1e-4, 90.0), st.floats(1e-4, 90.0)), max_size=8))
def test_rooflines_hold_any_marks(values):
    points = [Point(label=str(i), x=x, y=y, small=(other,)) for i, (x, y, other) in enumerate(values)]
    roofs = [Roof(label="peak", operations=100.0), Roof(label="memory", bytes=10.0), Roof(label="rows", bytes=0.01)]
    parsed = marks_inside(roofline_chart(points, roofs, **rooflines))
    assert parsed.tags.count("circle") == 2 * len(values)


def test_a_mark_at_its_limit_lies_on_the_roof():
    points = [Point(label="moving", x=1.0, y=10.0), Point(label="computing", x=50.0, y=100.0)]
    roofs = [Roof(label="peak", operations=100.0), Roof(label="memory", bytes=10.0)]
    parsed = Parsed(roofline_chart(points, roofs, **rooflines))
    level, slope = (
        [tuple(map(float, place.split())) for place in re.split("[ML]", path)[1:]]
        for path in parsed.values("path", "d")
    )
    (mx, my), (cx, cy) = zip(
        map(float, parsed.values("circle", "cx")), map(float, parsed.values("circle", "cy")), strict=True
    )
    assert cy == pytest.approx(level[0][1], abs=0.1)
    assert level[0][0] < cx < level[1][0]
    share = (mx - slope[0][0]) / (slope[1][0] - slope[0][0])
    assert my == pytest.approx(slope[0][1] + share * (slope[1][1] - slope[0][1]), abs=0.2)


def test_a_picture_is_a_file_of_its_own():
    chart = roofline_chart([Point(label="a < b", x=1.0, y=2.0)], [Roof(label="peak", operations=9.0)], **rooflines)
    root = ElementTree.fromstring(picture(chart))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in root.find("{*}style").text
    assert "a < b" in [element.text for element in root.findall(".//{*}text")]
