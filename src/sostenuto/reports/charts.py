"""Charts as inline SVG: small, labelled where the eye is, coloured by the page's style sheet.

Every chart takes plain records and returns one `<svg>` with a title and a description; marks carry a `<title>` that a
browser shows on hover. Colours are classes `c0` .. `c7` that the style sheet defines for light and dark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sostenuto.reports.markup import Child, Markup, tag
from sostenuto.reports.numbers import fixed, short_count, significant, thousands
from sostenuto.reports.scales import Scale, domain, linear_ticks, log_domain, spread_apart, tick_digits

LINE = 15.0  # least distance of neighbouring labels
CHARACTER = 7.4  # width of a letter of the label font where the page falls back to a wide one
BOLD = 7.4  # in the widest of the fonts that a page may fall back to


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: a label, a colour class, and points with intervals; None is a gap."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    dashed: bool = False
    faint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One mark with an interval: a row of an interval chart, or a place in a scatter."""

    label: str
    y: float | None  # the measured value; in interval charts it runs along the horizontal axis
    low: float | None = None
    high: float | None = None
    x: float = 0.0
    colour: str = "c0"
    hollow: bool = False
    detail: str = ""  # second, fainter part of the label
    tip: str = ""
    small: Sequence[float] = field(default=())  # further small marks: seeds


def _svg(width: float, height: float, title: str, description: str, *children: Child, class_: str = "chart") -> Markup:
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        class_=class_,
        role="img",
        aria_label=f"{title}. {description}",
    )


def _text(x: float, y: float, words: Child, *, class_: str = "tick", anchor: str = "middle") -> Markup:
    return tag("text", words, x=x, y=y, class_=class_, text_anchor=anchor)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))


def _tick_text(ticks: Sequence[float], value: float) -> str:
    return fixed(value, tick_digits(ticks))


def _x_text(values: Sequence[float], value: float) -> str:
    """Write a place on a linear axis: a count where all are whole, else as short as it may be."""
    return thousands(value) if all(v == round(v) for v in values) else f"{value:.3g}"


def _y_axis(scale: Scale, left: float, right: float, caption: str) -> list[Markup]:
    ticks = scale.ticks
    out: list[Markup] = []
    for tick in ticks:
        out.append(_line(left, scale(tick), right, scale(tick), "grid"))
        words = (thousands(tick) if tick >= 1 else f"{tick:g}") if scale.log else _tick_text(ticks, tick)
        out.append(_text(left - 8, scale(tick) + 4, words, anchor="end"))
    out.append(_text(0, scale.end - 14, caption, class_="axis", anchor="start"))
    return out


def _runs(series: Series) -> list[list[int]]:
    """Cut a line at its gaps."""
    out: list[list[int]] = [[]]
    for i, y in enumerate(series.y):
        if y is None:
            out.append([])
        else:
            out[-1].append(i)
    return [run for run in out if run]


def _band(series: Series, run: Sequence[int], x: Scale, y: Scale) -> Markup | None:
    if not series.low or not series.high:
        return None
    known = [i for i in run if series.low[i] is not None and series.high[i] is not None]
    if len(known) < 2:
        return None
    upper = [(x(series.x[i]), y(series.high[i] or 0.0)) for i in known]
    lower = [(x(series.x[i]), y(series.low[i] or 0.0)) for i in reversed(known)]
    return tag("path", d=_path(upper + lower) + " Z", class_=f"band {series.colour}")


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    description: str,
    y_caption: str,
    x_caption: str = "",
    x_names: Sequence[str] = (),
    x_details: Sequence[str] = (),
    width: float = 760,
    height: float = 380,
    digits: int = 4,
    band: bool = True,
    dots: bool = True,
    y_range: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> Markup:
    """Draw lines with interval bands; each is named at its end.

    Args:
        series:      lines over common x; with `x_names`, x counts the names.
        title:       what the chart is.
        description: what it shows, for those who do not see it.
        y_caption:   what runs upwards.
        x_caption:   what runs to the right.
        x_names:     names of x = 0, 1, 2 ..; without them the axis is linear.
        x_details:   fainter second line under each name.
        width:       pixels.
        height:      pixels.
        digits:      decimals in tips.
        band:        draw intervals.
        dots:        draw points.
        y_range:     least and greatest y; default what the lines need.
        logarithmic: both axes; every x and y must then be above 0.
    """
    longest = max((len(s.label) for s in series), default=0)
    left, right = 52.0, width - longest * CHARACTER - 26
    top, bottom = 34.0, height - (58 if x_details else 44)
    ys = [v for s in series for v in s.y]
    span = y_range or (log_domain(ys) if logarithmic else domain(ys))
    y = Scale(low=span[0], high=span[1], start=bottom, end=top, log=logarithmic)
    xs = [v for s in series for v in s.x]
    x_low, x_high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    inset = 18.0 if x_names else 0.0
    x = Scale(low=x_low, high=x_high, start=left + inset, end=right - inset, log=logarithmic)
    children: list[Child] = list(_y_axis(y, left, right, y_caption))
    if x_names:
        for i, name in enumerate(x_names):
            children.append(_text(x(i), bottom + 20, name))
            if x_details:
                children.append(_text(x(i), bottom + 35, x_details[i], class_="faint"))
    else:
        ticks = x.ticks
        children.extend(_text(x(tick), bottom + 20, _x_text(ticks, tick)) for tick in ticks)
    children.append(_text((left + right) / 2, height - 4, x_caption, class_="axis"))
    for s in series:
        marks: list[Child] = []
        for run in _runs(s):
            if band:
                marks.append(_band(s, run, x, y))
            points = [(x(s.x[i]), y(s.y[i] or 0.0)) for i in run]
            dash = " dashed" if s.dashed else ""
            marks.append(tag("path", d=_path(points), class_=f"line {s.colour}{dash}"))
            if dots:
                for i, (px, py) in zip(run, points, strict=True):
                    where = x_names[round(s.x[i])] if x_names else _x_text(s.x, s.x[i])
                    interval = _interval_text(s.low[i], s.high[i], digits) if s.low and s.high else ""
                    tip = f"{s.label} · {where}: {fixed(s.y[i], digits)}{interval}"
                    marks.append(_dot(px, py, s.colour, tip, hollow=s.dashed, radius=3.4))
        children.append(tag("g", *marks, class_="series faded" if s.faint else "series"))
    known = [(s, [i for i, v in enumerate(s.y) if v is not None]) for s in series if s.label]
    ends = [(s, max(run, key=s.x.__getitem__)) for s, run in known if run]  # a curve may turn back
    wanted = [y(s.y[i] or 0.0) for s, i in ends]
    for (s, i), py, place in zip(ends, wanted, spread_apart(wanted, LINE, top, bottom), strict=True):
        from_x = x(s.x[i]) + (6 if dots else 2)
        label_x = right + 12
        if label_x - from_x > 24 or abs(place - py) > 2:
            elbow = [(from_x, py), (label_x - 9, place), (label_x - 3, place)]
            children.append(tag("path", d=_path(elbow), class_="leader"))
        children.append(_text(label_x, place + 4, s.label, class_=f"label {s.colour}", anchor="start"))
    return _svg(width, height, title, description, *children)


def _interval_text(low: float | None, high: float | None, digits: int) -> str:
    if low is None or high is None:
        return ""
    return f" ({fixed(low, digits)} to {fixed(high, digits)})"


def _dot(x: float, y: float, colour: str, tip: str, *, hollow: bool = False, radius: float = 4.6) -> Markup:
    shape = f"dot hollow {colour}" if hollow else f"dot {colour}"
    return tag("circle", tag("title", tip), cx=x, cy=y, r=radius, class_=shape)


def strip(point: Point, scale: Scale, *, reference: float | None = None, height: float = 26, digits: int = 4) -> Markup:
    """Draw one value with its interval and its seeds on a shared axis, for a cell of a table."""
    middle, width = height / 2, scale.start + scale.end
    children: list[Child] = [_line(scale.start, middle, scale.end, middle, "rail")]
    if reference is not None:
        children.append(_line(scale(reference), 0, scale(reference), height, "reference"))
    children.extend(_interval_marks(point, scale, middle, digits))
    words = f"{point.label}: {fixed(point.y, digits)}{_interval_text(point.low, point.high, digits)}"
    return _svg(width, height, point.label, words, *children, class_="strip")


def strip_axis(scale: Scale, *, height: float = 20) -> Markup:
    """Draw the common axis of strips, for the head of their column."""
    ticks = linear_ticks(scale.low, scale.high, 3)
    marks = [_text(scale(t), height - 8, _tick_text(ticks, t)) for t in ticks]
    marks += [_line(scale(t), height - 4, scale(t), height, "leader") for t in ticks]
    return _svg(scale.start + scale.end, height, "Axis", "", *marks, class_="strip")


def _interval_marks(point: Point, scale: Scale, middle: float, digits: int) -> list[Child]:
    if point.y is None:
        return []
    marks: list[Child] = []
    if point.low is not None and point.high is not None:
        marks.append(_line(scale(point.low), middle, scale(point.high), middle, f"interval {point.colour}"))
    marks.extend(_line(scale(v), middle - 6, scale(v), middle + 6, f"seed {point.colour}") for v in point.small)
    interval = _interval_text(point.low, point.high, digits)
    tip = point.tip or f"{point.label}: {fixed(point.y, digits)}{interval}"
    marks.append(_dot(scale(point.y), middle, point.colour, tip, hollow=point.hollow))
    return marks


def interval_chart(
    points: Sequence[Point],
    *,
    title: str,
    description: str,
    x_caption: str,
    reference: float | None = None,
    reference_label: str = "",
    width: float = 760,
    row_height: float = 28,
    digits: int = 4,
    signed_axis: bool = False,
) -> Markup:
    """Draw one row per point: its name, its value as a dot and its interval, against an optional reference."""
    values = [v for p in points for v in (p.y, p.low, p.high, *p.small)]
    span = domain([*values, *([] if reference is None else [reference])], least=0.002)
    longest = max((len(p.label) + 0.9 * len(p.detail) + 3 for p in points), default=0)
    left = min(longest * CHARACTER + 8, width * 0.55)
    top, bottom = 26.0, 26.0 + row_height * max(len(points), 1)
    height = bottom + 46
    x = Scale(low=span[0], high=span[1], start=left + 8, end=width - 62)
    ticks = x.ticks
    children: list[Child] = []
    for tick in ticks:
        sign = "+" if signed_axis and tick > 0 else ""
        children.append(_line(x(tick), top, x(tick), bottom, "grid"))
        children.append(_text(x(tick), bottom + 18, sign + _tick_text(ticks, tick)))
    if reference is not None:
        children.append(_line(x(reference), top - 6, x(reference), bottom, "reference"))
        children.append(_text(x(reference), top - 11, reference_label, class_="faint"))
    for place, point in enumerate(points):
        middle = top + row_height * (place + 0.5)
        label: list[Child] = [
            tag("tspan", point.label, class_="name"),
            tag("tspan", point.detail, class_="faint", dx=7) if point.detail else None,
        ]
        children.append(_text(left - 4, middle + 4, label, class_="row", anchor="end"))
        children.extend(_interval_marks(point, x, middle, digits))
        shown = fixed(point.y, digits)
        if signed_axis and point.y is not None and point.y > 0:
            shown = "+" + shown
        children.append(_text(width, middle + 4, shown, class_="value", anchor="end"))
    children.append(_text((x.start + x.end) / 2, height - 8, x_caption, class_="axis"))
    return _svg(width, height, title, description, *children)


@dataclass(slots=True)
class _Box:
    """A label's place: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)


_AROUND = (  # where a label may stand, from its mark; the first are best
    *((10, 0), (-10, 0), (0, -13), (0, 13)),
    *((9, -12), (9, 12), (-9, -12), (-9, 12)),
    *((12, -22), (12, 22), (-12, -22), (-12, 22), (0, -27), (0, 27)),
)


def _placed_labels(
    points: Sequence[Point],
    places: Sequence[tuple[float, float]],
    room: _Box,
    avoid: Sequence[_Box] = (),
    character: float = CHARACTER,
) -> list[Child]:
    """Put each label where it covers least, trying places around its mark."""
    taken = [*(_Box(px - 6, py - 6, px + 6, py + 6) for px, py in places), *avoid]
    out: list[Child] = []
    for point, (px, py) in sorted(zip(points, places, strict=True), key=lambda one: one[1][1]):
        width = len(point.label) * character + 2
        best: tuple[float, float, float, str, _Box] | None = None
        for rank, (dx, dy) in enumerate(_AROUND):
            anchor = "start" if dx > 0 else "end" if dx < 0 else "middle"
            left = px + dx - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
            box = _Box(left, py + dy - 7, left + width, py + dy + 7)
            outside = max(room.left - box.left, 0) + max(box.right - room.right, 0)
            outside += max(room.top - box.top, 0) + max(box.bottom - room.bottom, 0)
            cost = sum(box.overlap(other) for other in taken) + 40 * outside + 3 * rank
            if best is None or cost < best[0]:
                best = (cost, px + dx, py + dy, anchor, box)
        if best is not None:
            _, lx, ly, anchor, box = best
            taken.append(box)
            if math.hypot(lx - px, ly - py) > 16:
                out.append(_line(px, py, lx, ly, "leader"))
            out.append(_text(lx, ly + 4, point.label, class_=f"label {point.colour}", anchor=anchor))
    return out


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats on both axes (smaller x, larger y), by rising x."""
    out: list[Point] = []
    for point in sorted((p for p in points if p.y is not None), key=lambda p: (p.x, -(p.y or 0.0))):
        if not out or (point.y or 0.0) > (out[-1].y or 0.0):
            out.append(point)
    return out


def scatter_chart(
    points: Sequence[Point],
    *,
    title: str,
    description: str,
    x_caption: str,
    y_caption: str,
    width: float = 760,
    height: float = 420,
    digits: int = 4,
) -> Markup:
    """Draw marks over a logarithmic x, named directly, with the line of those that nothing beats on both axes."""
    left, right, top, bottom = 52.0, width - 16, 34.0, height - 46
    span = domain([v for p in points for v in (p.y, p.low, p.high)], padding=0.08)
    y = Scale(low=span[0], high=span[1], start=bottom, end=top)
    xs = [p.x for p in points if p.x > 0] or [1.0]
    low, high = min(xs), max(xs)
    air = max((high / low) ** 0.1, 1.5)
    x = Scale(low=low / air, high=high * air, start=left, end=right, log=True)
    children: list[Child] = list(_y_axis(y, left, right, y_caption))
    for tick in x.ticks:
        children.append(_line(x(tick), bottom, x(tick), bottom + 5, "grid"))
        children.append(_text(x(tick), bottom + 20, significant(tick, 1)))
    children.append(_text((left + right) / 2, height - 6, x_caption, class_="axis"))
    best = frontier(points)
    if len(best) > 1:
        steps: list[tuple[float, float]] = [(x(best[0].x), y(best[0].y or 0.0))]
        for one, two in itertools.pairwise(best):
            steps += [(x(two.x), y(one.y or 0.0)), (x(two.x), y(two.y or 0.0))]
        children.append(tag("path", d=_path([*steps, (right, steps[-1][1])]), class_="frontier"))
    shown = [p for p in points if p.y is not None]
    places = [(x(p.x), y(p.y or 0.0)) for p in shown]
    for p, (px, py) in zip(shown, places, strict=True):
        if p.low is not None and p.high is not None:
            children.append(_line(px, y(p.low), px, y(p.high), f"interval {p.colour}"))
        tip = p.tip or f"{p.label}: {fixed(p.y, digits)} at {significant(p.x, 3)}"
        children.append(_dot(px, py, p.colour, tip, hollow=p.hollow, radius=5.2))
    children.extend(_placed_labels(shown, places, _Box(left, top - 8, right + 8, bottom)))
    return _svg(width, height, title, description, *children)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """A limit in a roofline chart: so many operations per second, or so many bytes per second."""

    label: str
    operations: float | None = None
    bytes: float | None = None
    thin: bool = False


def roofline_chart(
    points: Sequence[Point],
    roofs: Sequence[Roof],
    *,
    title: str,
    description: str,
    x_caption: str,
    y_caption: str,
    key: Sequence[tuple[str, str]] = (),
    width: float = 960,
    height: float = 600,
) -> Markup:
    """Draw operations per second over operations per byte, both logarithmic, under the limits of a machine.

    Args:
        points:      `x` operations per byte, `y` operations per second; `small` other forms of the same work.
        roofs:       the limits, in the units of the axes; at least one of operations.
        title:       what the chart is.
        description: what it shows, for those who do not see it.
        x_caption:   what runs to the right.
        y_caption:   what runs upwards.
        key:         colour class and meaning of the marks.
        width:       pixels.
        height:      pixels.
    """
    left, right, top, bottom = 70.0, width - 24, 48.0, height - 78
    shown = [p for p in points if p.y and p.x > 0]
    peak = max(r.operations for r in roofs if r.operations)
    ys = [v for p in shown for v in (p.y or peak, *p.small) if v > 0] + [peak]
    slopes = [r.bytes for r in roofs if r.bytes]
    xs = [p.x for p in shown] + [peak / slope for slope in slopes]
    x = Scale(low=min(xs, default=0.1) / 6, high=max(xs, default=10.0) * 6, start=left, end=right, log=True)
    y = Scale(low=min(ys) / 3, high=peak * 2.5, start=bottom, end=top, log=True)
    children: list[Child] = [_text(left - 54, top - 22, y_caption, class_="axis", anchor="start")]
    for tick in y.ticks:
        children.append(_line(left, y(tick), right, y(tick), "grid"))
        children.append(_text(left - 8, y(tick) + 4, significant(tick, 1), anchor="end"))
    for tick in x.ticks:
        children.append(_line(x(tick), top, x(tick), bottom, "grid"))
        children.append(_text(x(tick), bottom + 20, significant(tick, 1)))
    children.append(_text((left + right) / 2, bottom + 42, x_caption, class_="axis"))
    places = [(x(p.x), y(p.y or peak)) for p in shown]
    avoid = [_Box(px - 8, py - 8, px + 8, py + 8) for px, py in places]
    avoid += [_Box(left, y(r.operations) - 1, right, y(r.operations) + 1) for r in roofs if r.operations]
    for roof in roofs:
        lines, boxes = _roof(roof, x, y, peak, max(slopes, default=peak), avoid)
        children.extend(lines)
        avoid.extend(boxes)
    for p, (px, py) in zip(shown, places, strict=True):
        for other in p.small:
            children.append(_line(px, py, px, y(other), f"interval {p.colour}"))
            children.append(_dot(px, y(other), p.colour, p.tip, hollow=True, radius=3.4))
            avoid.append(_Box(px - 4, y(other) - 4, px + 4, y(other) + 4))
            avoid.append(_Box(px - 1, min(py, y(other)), px + 1, max(py, y(other))))
        children.append(_dot(px, py, p.colour, p.tip or p.label, radius=5.2))
    children.extend(_placed_labels(shown, places, _Box(left, top, right, bottom), avoid, BOLD))
    at = left
    for colour, meaning in key:
        children.append(_dot(at + 5, height - 16, colour.replace("hollow ", ""), meaning, hollow="hollow" in colour))
        children.append(_text(at + 16, height - 12, meaning, anchor="start"))
        at += 34 + len(meaning) * CHARACTER
    return _svg(width, height, title, description, *children)


def _roof(
    roof: Roof, x: Scale, y: Scale, peak: float, steepest: float, avoid: Sequence[_Box]
) -> tuple[list[Child], list[_Box]]:
    """Return a limit's line with its name on it, and the places that the name takes."""
    style = "line thin c7" if roof.thin else "line c6"
    long = len(roof.label) * BOLD
    if roof.operations:
        from_x, level = x(roof.operations / steepest), y(roof.operations)
        spots = [
            (x.end - 4 - back * (x.end - from_x - long), level + dy) for back in (0, 0.3, 0.6, 0.9) for dy in (-7, 16)
        ]
        boxes = [_Box(end - long, base - 12, end, base + 4) for end, base in spots]
        costs = [sum(box.overlap(other) for other in avoid) for box in boxes]
        best = costs.index(min(costs))
        name = _text(*spots[best], roof.label, class_="label c6", anchor="end")
        return [tag("path", d=_path([(from_x, level), (x.end, level)]), class_=style), name], [boxes[best]]
    if not roof.bytes:
        return [], []
    start, end = max(x.low, y.low / roof.bytes), peak / roof.bytes
    from_x, from_y, to_x, to_y = x(start), y(start * roof.bytes), x(end), y(peak)
    turn = math.atan2(to_y - from_y, to_x - from_x)
    foot = 26.0  # pixels along the line before the name begins
    name_x, name_y = from_x + foot * math.cos(turn), from_y + foot * math.sin(turn)
    name = tag(
        "text",
        roof.label,
        class_="label c6",
        transform=f"translate({name_x:.1f} {name_y:.1f}) rotate({math.degrees(turn):.1f}) translate(0 -6)",
    )
    boxes = []
    for step in range(0, int(math.hypot(to_x - from_x, to_y - from_y)), 12):  # the line and the name along it
        px, py = from_x + step * math.cos(turn), from_y + step * math.sin(turn)
        air = 16 if foot <= step <= foot + long else 2
        boxes.append(_Box(px - air, py - air, px + 6, py + 2))
    return [tag("path", d=_path([(from_x, from_y), (to_x, to_y)]), class_=style), name], boxes


def reliability_chart(
    probability: Sequence[float],
    observed: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    rows: Sequence[int],
    *,
    title: str,
    description: str,
    colour: str = "c0",
    reach: float = 1.0,
    size: float = 216,
) -> Markup:
    """Draw predicted against observed rate; on the diagonal a probability means what it says.

    `reach` is the end of both axes, common to charts that stand beside each other.
    """
    left, right, top, bottom = 34.0, size - 8, 10.0, size - 36
    x = Scale(low=0.0, high=reach, start=left, end=right)
    y = Scale(low=0.0, high=reach, start=bottom, end=top)
    ticks = [t for t in x.ticks if t <= reach]
    children: list[Child] = []
    for tick in ticks:
        children.append(_line(left, y(tick), right, y(tick), "grid"))
        children.append(_text(left - 6, y(tick) + 4, _tick_text(ticks, tick), anchor="end"))
        children.append(_text(x(tick), bottom + 16, _tick_text(ticks, tick)))
    children.append(_line(x(0), y(0), x(reach), y(reach), "reference"))
    places = [(x(p), y(o)) for p, o in zip(probability, observed, strict=True)]
    children.append(tag("path", d=_path(places), class_=f"line thin {colour}"))
    for (px, py), p, o, a, b, n in zip(places, probability, observed, low, high, rows, strict=True):
        children.append(_line(px, y(a), px, y(b), f"interval {colour}"))
        tip = f"said {fixed(p, 3)}, came {fixed(o, 3)} ({thousands(n)} rows)"
        children.append(_dot(px, py, colour, tip, radius=2.8))
    children.append(_text((left + right) / 2, size - 4, "predicted", class_="axis"))
    return _svg(size, size, title, description, *children)


def histogram(
    names: Sequence[str],
    counts: Sequence[int],
    *,
    title: str,
    description: str,
    x_caption: str,
    unit: str = "",
    width: float = 560,
    height: float = 220,
) -> Markup:
    """Draw counts as bars, each named under it and its count above it."""
    left, right, top, bottom = 4.0, width - 4, 22.0, height - 44
    most = max(counts, default=1) or 1
    y = Scale(low=0.0, high=float(most), start=bottom, end=top)
    step = (right - left) / max(len(counts), 1)
    children: list[Child] = [_line(left, bottom, right, bottom, "grid")]
    for i, (name, count) in enumerate(zip(names, counts, strict=True)):
        x = left + i * step
        bar = tag("title", f"{name}: {thousands(count)} {unit}".strip())
        children.append(
            tag("rect", bar, x=x + 2, y=y(count), width=step - 4, height=bottom - y(count), rx=2.0, class_="bar")
        )
        if count:
            children.append(_text(x + step / 2, y(count) - 6, short_count(count), class_="faint"))
        children.append(_text(x + step / 2, bottom + 17, name))
    children.append(_text((left + right) / 2, height - 6, x_caption, class_="axis"))
    return _svg(width, height, title, description, *children)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time with a name."""

    label: str
    start: float
    end: float
    class_: str


def span_chart(
    spans: Sequence[Span], ticks: Sequence[tuple[float, str]], *, title: str, description: str, width: float = 560
) -> Markup:
    """Draw stretches of time on one axis: the log, and the splits cut out of it."""
    left, right, row = 92.0, width - 8, 26.0
    low, high = min(s.start for s in spans), max(s.end for s in spans)
    x = Scale(low=low, high=high, start=left, end=right)
    bottom = 6 + row * len(spans)
    children: list[Child] = []
    for value, name in ticks:
        children.append(_line(x(value), 4, x(value), bottom, "grid"))
        children.append(_text(x(value), bottom + 16, name))
    for i, s in enumerate(spans):
        top = 6 + row * i
        wide = max(x(s.end) - x(s.start), 2.5)
        children.append(_text(left - 10, top + row / 2 + 2, s.label, class_="row", anchor="end"))
        children.append(tag("rect", x=x(s.start), y=top + 4, width=wide, height=row - 10, rx=3.0, class_=s.class_))
    return _svg(width, bottom + 26, title, description, *children)


__all__ = [
    "Point",
    "Roof",
    "Series",
    "Span",
    "frontier",
    "histogram",
    "interval_chart",
    "line_chart",
    "reliability_chart",
    "roofline_chart",
    "scatter_chart",
    "span_chart",
    "strip",
    "strip_axis",
]
