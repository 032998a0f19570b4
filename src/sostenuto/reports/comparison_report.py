"""The comparison as one page: who wins, by how much, at what cost, on which data, measured how."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from sostenuto.reports.charts import (
    Point,
    Series,
    Span,
    histogram,
    interval_chart,
    line_chart,
    reliability_chart,
    scatter_chart,
    span_chart,
    strip,
    strip_axis,
)
from sostenuto.reports.comparison import ComparisonResult, DataSummary, Difference, Row, Score
from sostenuto.reports.markup import Child, Markup, join, tag
from sostenuto.reports.numbers import (
    NONE,
    byte_size,
    duration,
    fixed,
    p_value,
    short_count,
    signed,
    significant,
    thousands,
)
from sostenuto.reports.page import facts, figure, list_picker, list_style, page, section, table, tiles, write_page
from sostenuto.reports.scales import Scale, domain
from sostenuto.reports.training_charts import training_charts
from sostenuto.reports.verdict import headline, interval, metric_title, row_label, variant

SIDE_METRICS = ("gauc_user", "ndcg@10", "logloss", "pcoc")  # beside the headline, where measured
SMALLER_IS_BETTER = frozenset({"logloss", "ne", "ece"})
LINES_AT_MOST = 8
THIN_PART = 30  # requests below which a point of a line says nothing
FAR_BELOW = 0.04  # a chart of lines leaves out rows this far under the best: they would flatten the rest


def colours(rows: Sequence[Row]) -> dict[str, str]:
    """Give each model one colour for the whole page: blues and greens neural, warm fitted, grey rules."""
    slots = {"neural": ("c0", "c1", "c2", "c3"), "fitted": ("c4", "c5"), "rule": ("c6", "c7")}
    given: dict[str, str] = {}
    used = dict.fromkeys(slots, 0)
    for row in rows:
        if row.model not in given:
            choices = slots[row.kind]
            given[row.model] = choices[used[row.kind] % len(choices)]
            used[row.kind] += 1
    return {row.key: given[row.model] for row in rows}


def _is_cut(row: Row) -> bool:
    return row.history != "full"


def _by_list(comparison: ComparisonResult, make: Callable[[str], Child]) -> list[Markup]:
    """Make one block per list; the picker at the top of the page shows one of them."""
    several = len(comparison.lists) > 1
    blocks = []
    for place, name in enumerate(comparison.lists):
        if not comparison.ranked(name):
            continue
        title = tag("p", f"List: {name}", class_="on-list") if several else None
        blocks.append(tag("div", title, make(name), data_list=str(place)))
    return blocks


def _name_cell(row: Row, colour: str, *, baseline: bool) -> list[Child]:
    extra = variant(row)
    return [
        tag("span", class_=f"swatch {colour}" + (" hollow" if _is_cut(row) else "")),
        tag("b", row.title),
        tag("small", extra) if extra else None,
        tag("span", "baseline", class_="tag") if baseline else None,
    ]


def _versus_cell(versus: Difference | None) -> Markup:
    if versus is None:
        return tag("td", NONE, data_v="0")
    word, kind = ("beats", "good") if versus.beats else ("loses", "bad") if versus.loses else ("unclear", "even")
    small = f"{signed(versus.low)} to {signed(versus.high)}"
    return tag(
        "td",
        tag("span", f"{signed(versus.difference)} {word}", class_=f"verdict {kind}"),
        tag("span", small, class_="range"),
        data_v=repr(versus.difference),
        title=f"{p_value(versus.p_holm)} after Holm; seeds {'agree' if versus.seeds_agree else 'disagree'}",
    )


def _value_cell(score: Score | None, digits: int = 4, *, big: bool = False) -> Markup:
    if score is None or score.mean is None:
        return tag("td", NONE, data_v="")
    spread = tag("span", f"± {fixed(score.spread, digits)}", class_="range") if score.spread is not None else None
    shown = tag("span", fixed(score.mean, digits), class_="big" if big else None)
    return tag("td", shown, spread, data_v=repr(score.mean))


def _strip_point(row: Row, score: Score, colour: str) -> Point:
    seeds = [v for v in score.per_seed if v is not None]
    return Point(
        label=row_label(row),
        y=score.mean,
        low=score.low,
        high=score.high,
        colour=colour,
        hollow=_is_cut(row),
        small=seeds if len(seeds) > 1 else (),
    )


def _leaderboard(comparison: ComparisonResult, list_name: str) -> Markup:
    rows, colour = comparison.ranked(list_name), colours(comparison.rows)
    head = comparison.headline
    scores = {row.key: row.lists[list_name].metrics[head] for row in rows}
    span = domain([v for s in scores.values() for v in (s.mean, s.low, s.high)], padding=0.04)
    scale = Scale(low=span[0], high=span[1], start=12, end=172)
    base = scores.get(comparison.baseline)
    side = [m for m in SIDE_METRICS if any(m in row.lists[list_name].metrics for row in rows)]
    heads = [
        tag("th", tag("span", "Rank", class_="hidden"), scope="col", class_="rank", data_fixed=""),
        tag("th", "Model", scope="col", class_="left"),
        tag("th", metric_title(head), scope="col", aria_sort="descending"),
        tag("th", strip_axis(scale), tag("span", "mean and interval", class_="hidden"), scope="col", data_fixed=""),
        tag("th", "against baseline", scope="col"),
        *(tag("th", metric_title(m), scope="col", data_up="" if m in SMALLER_IS_BETTER else None) for m in side),
    ]
    body = []
    for place, row in enumerate(rows, 1):
        metrics = row.lists[list_name].metrics
        chart = strip(_strip_point(row, scores[row.key], colour[row.key]), scale, reference=base.mean if base else None)
        is_base = row.key == comparison.baseline
        body.append(
            tag(
                "tr",
                tag("td", place, class_="rank", data_v=str(place)),
                tag("th", _name_cell(row, colour[row.key], baseline=is_base), scope="row", class_="name"),
                _value_cell(scores[row.key], big=True),
                tag("td", chart),
                _versus_cell(row.lists[list_name].versus_baseline),
                *(_value_cell(metrics.get(m), 3 if m in ("pcoc", "ece") else 4) for m in side),
                class_="baseline" if is_base else None,
            )
        )
    caption = tag("caption", f"Leaderboard on {list_name}", class_="hidden")
    content = tag("table", caption, tag("thead", tag("tr", *heads)), tag("tbody", *body), class_="sortable")
    label = f"Leaderboard on {list_name}"
    return tag("div", content, class_="card scroll", tabindex="0", role="region", aria_label=label)


def _every_metric(comparison: ComparisonResult, list_name: str) -> Markup:
    """Every metric of every row, behind a fold."""
    rows = comparison.ranked(list_name)
    names = list(dict.fromkeys(m for row in rows for m in row.lists[list_name].metrics))
    body: list[list[Child]] = []
    for row in rows:
        cells: list[Child] = [row_label(row)]
        for name in names:
            score = row.lists[list_name].metrics.get(name)
            if score is None or score.mean is None:
                cells.append(NONE)
                continue
            known = score.low is not None and score.high is not None
            small = f"{fixed(score.low)} to {fixed(score.high)}" if known else f"± {fixed(score.spread)}"
            cells.append([fixed(score.mean), tag("span", small, class_="range")])
        versus = row.lists[list_name].versus_baseline
        cells.append(NONE if versus is None else p_value(versus.p_holm))
        body.append(cells)
    heads = ["Model", *(metric_title(m) for m in names), "against baseline, Holm"]
    numbers = table(f"Every metric on {list_name}", heads, body)
    return tag("details", tag("summary", "Every metric, with 95 % intervals"), numbers)


def _key() -> Markup:
    def sample(*marks: Child) -> Markup:
        return tag("svg", *marks, viewBox="0 0 34 14", aria_hidden="true", class_="strip")

    dot = tag("circle", cx=17, cy=7, r=4.6, class_="dot c0")
    hollow = tag("circle", cx=17, cy=7, r=4.6, class_="dot hollow c0")
    bar = tag("line", x1=3, y1=7, x2=31, y2=7, class_="interval c0")
    tick = tag("line", x1=17, y1=1, x2=17, y2=13, class_="seed c0")
    base = tag("line", x1=17, y1=0, x2=17, y2=14, class_="reference")
    entries = (
        (sample(dot), "mean over seeds"),
        (sample(hollow), "same, with a cut history"),
        (sample(bar), "95 % interval, users and seeds resampled"),
        (sample(tick), "one seed"),
        (sample(base), "baseline"),
    )
    return tag("ul", *(tag("li", mark, words) for mark, words in entries), class_="key")


def _contrasts(comparison: ComparisonResult, list_name: str) -> Markup:
    mine = [c for c in comparison.contrasts if c.list_name == list_name]
    colour = colours(comparison.rows)
    parts: list[Child] = []
    for question in dict.fromkeys(c.question for c in mine):
        points = []
        for c in (c for c in mine if c.question == question):
            row, result = comparison.row(c.a), c.result
            detail = "" if result.beats or result.loses else "not clear"
            words = f"{row_label(row)} less {row_label(comparison.row(c.b))}: {signed(result.difference)}"
            points.append(
                Point(
                    label=row_label(row),
                    detail=detail,
                    y=result.difference,
                    low=result.low,
                    high=result.high,
                    colour=colour[c.a],
                    tip=f"{words} ({interval(result)}, {p_value(result.p_holm)})",
                )
            )
        chart = interval_chart(
            points,
            title=question,
            description=f"Differences in {metric_title(comparison.headline)} on {list_name}, with 95 % intervals",
            x_caption=f"difference in {metric_title(comparison.headline)}",
            reference=0.0,
            reference_label="no difference",
            width=560,
            signed_axis=True,
        )
        parts.append(tag("div", tag("h3", question), figure(chart)))
    return tag("div", *parts, class_="pair")


def _line_rows(comparison: ComparisonResult, list_name: str) -> list[Row]:
    """Rows worth a line: the best of each model not far below the best, and cut twins of full histories."""
    ranked = [r for r in comparison.ranked(list_name) if r.lists[list_name].by_length is not None]
    best: dict[str, Row] = {}
    for row in ranked:
        best.setdefault(row.model, row)
    top = ranked[0].lists[list_name].metrics[comparison.headline].mean if ranked else None
    chosen = list(best.values())
    for row in list(best.values()):
        twin = next(
            (r for r in ranked if r.model == row.model and r.match == row.match and _is_cut(r) != _is_cut(row)), None
        )
        if row.kind == "neural" and twin is not None:
            chosen.append(twin)

    def near(row: Row) -> bool:
        mean = row.lists[list_name].metrics[comparison.headline].mean
        return mean is not None and top is not None and mean > top - FAR_BELOW

    kept = [row for row in chosen if near(row)]
    return kept[:LINES_AT_MOST] if len(kept) > 1 else chosen[:LINES_AT_MOST]


def _lengths(comparison: ComparisonResult, list_name: str) -> Markup | None:
    rows = _line_rows(comparison, list_name)
    if not rows:
        return None
    colour = colours(comparison.rows)
    first = rows[0].lists[list_name].by_length
    assert first is not None
    shown = [i for i, n in enumerate(first.requests) if n >= THIN_PART] or list(range(len(first.parts)))
    series = []
    for row in rows:
        quality = row.lists[list_name].by_length
        if quality is None or quality.parts != first.parts:
            continue
        series.append(
            Series(
                label=row_label(row),
                colour=colour[row.key],
                x=range(len(shown)),
                y=[quality.value[i] for i in shown],
                low=[quality.low[i] for i in shown],
                high=[quality.high[i] for i in shown],
                dashed=_is_cut(row),
            )
        )
    metric = metric_title(comparison.headline)
    chart = line_chart(
        series,
        title=f"{metric} by length of history on {list_name}",
        description="One line per model; bands are 95 % intervals. The numbers follow as a table.",
        y_caption=metric,
        x_caption="behaviours before the request",
        x_names=[first.parts[i] for i in shown],
        x_details=[f"{thousands(first.requests[i])} requests" for i in shown],
        width=1080,
        height=420,
        band=len(series) <= 3,
    )
    every = [r for r in comparison.ranked(list_name) if r.lists[list_name].by_length is not None]
    numbers = table(
        f"{metric} by length of history on {list_name}",
        ["Model", *first.parts],
        [[row_label(r), *(fixed(v) for v in q.value)] for r in every if (q := r.lists[list_name].by_length)],
    )
    left_out = [row_label(r) for r in every if r not in rows]
    words = "Dashed: cut histories."
    if len(shown) < len(first.parts):
        words += f" Ranges with fewer than {THIN_PART} requests stand in the numbers only."
    if left_out:
        words += (
            f" So do {', '.join(left_out)}."
            if len(shown) < len(first.parts)
            else f" In the numbers only: {', '.join(left_out)}."
        )
    return figure(chart, words, numbers=numbers)


def _scatter(comparison: ComparisonResult, list_name: str) -> Markup | None:
    colour = colours(comparison.rows)
    points = []
    for row in comparison.ranked(list_name):
        score = row.lists[list_name].metrics[comparison.headline]
        if row.cost.serving_ms is None or row.cost.serving_ms <= 0 or score.mean is None:
            continue
        points.append(
            Point(
                label=row_label(row),
                x=row.cost.serving_ms,
                y=score.mean,
                low=score.low,
                high=score.high,
                colour=colour[row.key],
                hollow=_is_cut(row),
                tip=f"{row_label(row)}: {fixed(score.mean)} at {significant(row.cost.serving_ms, 3)} ms",
            )
        )
    if not points:
        return None
    metric = metric_title(comparison.headline)
    chart = scatter_chart(
        points,
        title=f"{metric} against serving cost on {list_name}",
        description="Milliseconds per request, logarithmic, against quality; the costs follow as a table.",
        x_caption="milliseconds per request, user state at hand (logarithmic)",
        y_caption=metric,
        width=1080,
        height=470,
    )
    return figure(chart, "Higher and further left is better. The line joins models that none beats on both.")


def _costs(comparison: ComparisonResult) -> Markup:
    colour = colours(comparison.rows)
    heads = [
        "Model",
        "parameters",
        "training",
        "samples / s",
        "ms / request",
        "ms / encode",
        "history",
        "candidates",
        "state / user",
        "match index",
    ]
    body = []
    for row in comparison.ranked(comparison.lists[0]):
        c = row.cost
        cells = (
            (c.parameters, short_count(c.parameters)),
            (c.training_s, duration(c.training_s)),
            (c.training_samples_s, thousands(c.training_samples_s)),
            (c.serving_ms, significant(c.serving_ms)),
            (c.encode_ms, significant(c.encode_ms)),
            (c.length, thousands(c.length)),
            (c.candidates, thousands(c.candidates)),
            (c.state_bytes, byte_size(c.state_bytes)),
            (c.match_bytes, byte_size(c.match_bytes)),
        )
        name = tag("th", _name_cell(row, colour[row.key], baseline=False), scope="row", class_="name")
        numbers = [tag("td", words, data_v="" if value is None else repr(value)) for value, words in cells]
        body.append(tag("tr", name, *numbers))
    head = tag(
        "tr", *(tag("th", h, scope="col", class_="left" if i == 0 else None, data_up="") for i, h in enumerate(heads))
    )
    caption = tag("caption", "What each model costs", class_="hidden")
    content = tag("table", caption, tag("thead", head), tag("tbody", *body), class_="sortable")
    return tag("div", content, class_="card scroll", tabindex="0", role="region", aria_label="What each model costs")


def _calibrations(comparison: ComparisonResult, list_name: str) -> Markup | None:
    colour = colours(comparison.rows)
    best: dict[str, Row] = {}
    for row in comparison.ranked(list_name):
        if row.lists[list_name].calibration is not None:
            best.setdefault(row.model, row)
    curves = [(row, c) for row in best.values() if (c := row.lists[list_name].calibration) is not None]
    if not curves:
        return None
    furthest = max((v for _, c in curves for v in (*c.probability, *c.observed)), default=1.0)
    reach = next(r for r in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if furthest <= r or r == 1.0)
    parts = []
    for row, c in curves:
        metrics = row.lists[list_name].metrics
        small = " · ".join(f"{metric_title(m)} {fixed(metrics[m].mean, 3)}" for m in ("pcoc", "ece") if m in metrics)
        chart = reliability_chart(
            c.probability,
            c.observed,
            c.low,
            c.high,
            c.rows,
            title=f"Calibration of {row_label(row)} on {list_name}",
            description=f"Observed against predicted rate in {len(c.rows)} bins of equal mass. {small}",
            colour=colour[row.key],
            reach=reach,
        )
        parts.append(tag("figure", tag("figcaption", row_label(row), tag("small", small)), chart))
    return tag("div", tag("div", *parts, class_="many"), class_="card")


def _training(comparison: ComparisonResult) -> list[Markup]:
    colour = colours(comparison.rows)
    best: dict[str, Row] = {}
    for row in comparison.ranked(comparison.lists[0]):
        if any(curve.valid_step or curve.loss_step for curve in row.training):
            best.setdefault(row.model, row)
    curves = [
        (row_label(row) if place == 0 else "", colour[row.key], curve)
        for row in best.values()
        for place, curve in enumerate(row.training)
    ]
    return training_charts(curves)


def _date(time_ms: int, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(time_ms / 1000, zone).date().isoformat()


def _month_ticks(low: int, high: int, zone: ZoneInfo) -> list[tuple[float, str]]:
    """Return about six moments between low and high, named by their month or day."""
    first, last = (datetime.fromtimestamp(t / 1000, zone) for t in (low, high))
    months = (last.year - first.year) * 12 + last.month - first.month
    if months < 3:
        step = (high - low) / 4
        return [(low + i * step, _date(int(low + i * step), zone)[5:]) for i in range(1, 4)]
    every = max(1, round(months / 6))
    ticks = []
    for m in range(every, months + 1, every):
        year, month = divmod(first.year * 12 + first.month - 1 + m, 12)
        moment = datetime(year, month + 1, 1, tzinfo=zone)
        ticks.append((moment.timestamp() * 1000, moment.strftime("%b %Y")))
    return ticks


def _timeline(data: DataSummary) -> Markup | None:
    if data.first_ms is None or data.last_ms is None or not data.splits:
        return None
    zone = ZoneInfo(data.time_zone)
    spans = [Span(label="log", start=data.first_ms, end=data.last_ms, class_="span-log")]
    names = {"train": "training", "valid": "validation", "test": "test"}
    for split, (low, high) in data.splits.items():
        spans.append(Span(label=names.get(split, split), start=low, end=high, class_=f"span-{split}"))
    words = "; ".join(f"{s.label} {_date(int(s.start), zone)} to {_date(int(s.end), zone)}" for s in spans)
    chart = span_chart(
        spans, _month_ticks(data.first_ms, data.last_ms, zone), title="Time of the splits", description=words
    )
    return figure(chart, f"When requests of each split were made, in {data.time_zone}: {words}.")


def _range_name(low: float, high: float) -> str:
    """Name a half-open range of whole numbers; large ones roughly."""
    if high - low <= 1:
        return short_count(low)
    last = high - 1 if high <= 1000 else high
    return f"{short_count(low)}\N{EN DASH}{short_count(last)}".replace(" ", "")


def data_section(data: DataSummary) -> Markup:
    """Make the section about the data, for any report."""
    shown = [
        (name.replace("_", " "), thousands(count) if count < 1e6 else short_count(count), "")
        for name, count in data.counts.items()
    ]
    shown += [(f"history, {name}", thousands(value), "behaviours") for name, value in data.length_quantiles.items()]
    chart = None
    if data.length_counts:
        names = [_range_name(low, high) for low, high in itertools.pairwise(data.length_edges)]
        chart = figure(
            histogram(
                names,
                data.length_counts,
                title="Length of history at test requests",
                description="Number of test requests by behaviours before the request",
                x_caption="behaviours strictly before the request",
                unit="requests",
            ),
            "How long histories are at the moment of a test request.",
        )
    about: list[tuple[str, Child]] = [("Source", data.source), ("Terms", data.terms), ("Protocol", data.protocol)]
    return section(
        f"Data: {data.name}",
        tiles(shown),
        tag("div", chart, _timeline(data), class_="pair"),
        facts([(name, value) for name, value in about if value]),
        tag("ul", *(tag("li", line) for line in data.protocol_text), class_="plain") if data.protocol_text else None,
        anchor="data",
    )


def _method(comparison: ComparisonResult) -> Markup:
    base = row_label(comparison.row(comparison.baseline))
    rules = (
        "GAUC by request: the AUC inside each request and candidate list, averaged with the number of candidates as "
        "weight. Ties are half a win. Requests whose candidates are all positive or all negative have no AUC and drop.",
        f"\N{LEFT DOUBLE QUOTATION MARK}Beats\N{RIGHT DOUBLE QUOTATION MARK} means: the 95 % interval of the paired "
        f"difference lies above 0 ({thousands(comparison.draws)} bootstrap draws; users resampled with all their "
        "requests, seeds inside each draw), its p-value is below .05 after Holm's correction over all comparisons on "
        "this page, and every seed agrees in sign.",
        f"All marks refer to {base}.",
        "± is the standard deviation between seeds; intervals hold both users and seeds.",
        "Every model saw the same splits, candidates and validation; the test split chose nothing.",
        "Labels of sampled candidates have a sampled base rate: logloss, PCOC and ECE speak of that rate.",
    )
    pairs: list[tuple[str, Child]] = [
        ("Budget", comparison.budget),
        ("Seeds", ", ".join(str(s) for s in comparison.seeds)),
        *comparison.settings.items(),
        ("Command", tag("code", comparison.command) if comparison.command else ""),
        ("Versions", ", ".join(f"{name} {version}" for name, version in comparison.versions.items())),
    ]
    notes = [f"{row_label(row)}: {row.note}" for row in comparison.rows if row.note]
    caveats = [*comparison.caveats, *notes]
    return section(
        "Method and caveats",
        tag("ul", *(tag("li", rule) for rule in rules), class_="plain"),
        tag("h3", "Caveats") if caveats else None,
        tag("ul", *(tag("li", line) for line in caveats), class_="plain") if caveats else None,
        tag("h3", "Settings"),
        facts([(name, value) for name, value in pairs if value]),
        anchor="method",
    )


def _standing(comparison: ComparisonResult, list_name: str) -> Markup:
    others = [r.lists[list_name].versus_baseline for r in comparison.ranked(list_name)]
    tested = [d for d in others if d is not None]
    beat = sum(d.beats for d in tested)
    lose = sum(d.loses for d in tested)
    even = len(tested) - beat - lose
    base = row_label(comparison.row(comparison.baseline))
    return tag(
        "p",
        f"Of {len(tested)} rows set against {base} on {list_name}: {beat} beat it, {lose} lose to it, {even} unclear.",
        class_="note",
    )


def comparison_page(comparison: ComparisonResult) -> Markup:
    """Return the whole page."""
    made = [
        f"budget {comparison.budget}" if comparison.budget else "",
        f"{len(comparison.seeds)} seeds" if len(comparison.seeds) > 1 else "",
        f"{len(comparison.rows)} rows",
        f"data {comparison.data.name}",
        comparison.made_at[:16].replace("T", " "),
    ]
    top = tag(
        "header",
        tag("p", "Sostenuto comparison", class_="eyebrow"),
        tag("h1", comparison.title),
        tag("p", headline(comparison), class_="lede"),
        tag("ul", *(tag("li", words) for words in made if words), class_="about"),
        class_="top",
    )
    metric = metric_title(comparison.headline)
    parts: list[Child] = [
        section(
            "Leaderboard",
            *_by_list(
                comparison,
                lambda n: join(_leaderboard(comparison, n), _standing(comparison, n), _every_metric(comparison, n)),
            ),
            _key(),
            intro=f"Sorted by {metric}. With scripts on, a click on a heading sorts by it.",
            anchor="leaderboard",
        )
    ]
    if comparison.contrasts:
        parts.append(
            section(
                "What makes the difference",
                *_by_list(comparison, lambda n: _contrasts(comparison, n)),
                intro="The same model twice, with one thing changed. Right of the line, the first form is better.",
                anchor="contrasts",
            )
        )
    if any(r.lists[n].by_length for n in comparison.lists for r in comparison.ranked(n)):
        parts.append(
            section(
                "Does a long history help?",
                *_by_list(comparison, lambda n: _lengths(comparison, n)),
                intro="Requests grouped by how many behaviours the user had before them.",
                anchor="length",
            )
        )
    parts.append(
        section(
            "Quality against serving cost",
            *_by_list(comparison, lambda n: _scatter(comparison, n)),
            _costs(comparison),
            intro="What a request costs when the user state is at hand, and what it takes to get there.",
            anchor="cost",
        )
    )
    if any(r.lists[n].calibration for n in comparison.lists for r in comparison.ranked(n)):
        parts.append(
            section(
                "Calibration",
                *_by_list(comparison, lambda n: _calibrations(comparison, n)),
                intro="Observed against predicted rate, best variant of each model. On the dotted line, a probability "
                "means what it says; below it, the model promises too much.",
                anchor="calibration",
            )
        )
    curves = _training(comparison)
    if curves:
        intro = "Best variant of each network; the strong line is the first seed."
        parts.append(section("Training", tag("div", *curves, class_="pair"), intro=intro, anchor="training"))
    parts += [data_section(comparison.data), _method(comparison)]
    foot = tag("footer", "Made by sostenuto. This file is complete: it loads nothing from anywhere.")
    return page(
        comparison.title,
        top,
        tag("main", list_picker(comparison.lists), *parts),
        foot,
        extra_style=list_style(len(comparison.lists)),
    )


def write_report(path: str | Path, comparison: ComparisonResult) -> Path:
    """Write the comparison as one self-contained HTML file and return its path."""
    return write_page(path, comparison_page(comparison))


__all__ = ["colours", "comparison_page", "data_section", "write_report"]
