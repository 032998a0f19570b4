"""The pages: complete, self-contained, safe against what data say, and plain about who wins."""

import html
import json
import re

import pytest
from tests.reports.invented import invented_curve, invented_data, invented_groups
from tests.reports.parsed import Parsed

from sostenuto.evaluation.evaluate import evaluate
from sostenuto.reports.comparison import ComparisonResult
from sostenuto.reports.comparison_report import colours, comparison_page, write_report
from sostenuto.reports.markdown import markdown_table
from sostenuto.reports.markup import tag
from sostenuto.reports.run_report import run_page, write_run_report
from sostenuto.reports.verdict import clause, headline, row_label, winner

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></script><b>",
    "' onload='x",
    "\x00a & b",
)


@pytest.fixture(scope="module")
def evaluation():
    import numpy as np

    group = next(g for g in invented_groups(80) if g.key == "din/full/match")
    return evaluate(group.seeds[0], lists=["promoted", "window"], draws=50, item_counts=np.arange(6000))


def check_page(markup):
    parsed = Parsed(markup)
    assert parsed.tags.count("script") == 1
    assert parsed.tags.count("style") == 1
    assert not {"img", "iframe", "link", "object", "embed", "base", "form"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert not [a for a in parsed.attributes if a[1] in ("src", "href", "action", "style")]
    assert "@import" not in markup
    assert "url(" not in markup
    return parsed


def test_the_page_is_one_file_that_loads_nothing(comparison, tmp_path):
    path = write_report(tmp_path / "out" / "report.html", comparison)
    parsed = check_page(path.read_text(encoding="utf-8"))
    assert "http://" not in path.read_text(encoding="utf-8")
    assert "https://" not in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert parsed.values("html", "lang") == ["en"]


def test_the_page_holds_every_section_row_and_caveat(comparison):
    parsed = Parsed(comparison_page(comparison))
    for heading in (
        "Leaderboard",
        "What makes the difference",
        "Does a long history help?",
        "Quality against serving cost",
        "Calibration",
        "Training",
        "Data: complete-journey",
        "Method and caveats",
    ):
        assert heading in parsed.words
    for row in comparison.rows:
        assert row.title in parsed.words
    for line in (*comparison.caveats, *comparison.data.protocol_text, comparison.command, comparison.data.terms):
        assert " ".join(line.split()) in parsed.words


def test_ids_are_distinct_and_labels_point_somewhere(comparison):
    parsed = Parsed(comparison_page(comparison))
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value for _, name, value in parsed.attributes if name == "aria-labelledby"} <= set(ids)


def test_tables_name_their_rows_and_columns(comparison):
    markup = comparison_page(comparison)
    for table in re.findall(r"<table.*?</table>", markup, re.S):
        assert "<caption" in table
        heads = re.findall(r"<thead>.*?</thead>", table, re.S)[0]
        columns = len(re.findall(r"<th[ >]", heads))
        assert heads.count('scope="col"') == columns
        for row in re.findall(r"<tr[ >].*?</tr>", table.split("</thead>")[1], re.S):
            assert row.count('scope="row"') == 1
            assert len(re.findall(r"<t[hd][ >]", row)) == columns


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_data_say_is_never_markup(comparison, attack):
    document = json.loads(comparison.model_dump_json())
    document |= {"title": attack, "caveats": [attack], "settings": {attack: attack}, "command": attack}
    document |= {"versions": {attack: attack}, "budget": attack, "made_at": attack, "lists": [attack, "window"]}
    document["data"] |= {"name": attack, "source": attack, "terms": attack, "protocol_text": [attack]}
    document["data"]["counts"] = {attack: 5}
    for row in document["rows"]:
        row |= {"title": attack, "history": attack if row["history"] != "full" else "full", "note": attack}
        row["lists"] = {attack: row["lists"]["promoted"], "window": row["lists"]["window"]}
        for result in row["lists"].values():
            result["by_length"]["parts"] = [attack] * len(result["by_length"]["parts"])
    for contrast in document["contrasts"]:
        contrast |= {"question": attack, "list_name": attack}
    hostile = ComparisonResult.model_validate(document)
    markup = comparison_page(hostile)
    parsed = check_page(markup)
    assert "\x00" not in markup
    assert " ".join(attack.replace("\x00", "").split()) in parsed.words
    assert "<script>alert" not in markup
    table = markdown_table(hostile)
    assert "<script" not in table
    assert len({line.count(" | ") for line in table.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_run_page_is_safe_too(evaluation, attack):
    hostile = json.loads(json.dumps(evaluation))
    hostile["lists"] = {attack: hostile["lists"]["promoted"], "window": hostile["lists"]["window"]}
    for cut in hostile["overall"]["slices"].values():
        cut["title"] = attack
        for part in cut["parts"]:
            part["name"] = attack
    check_page(run_page(hostile, title=attack, settings={attack: attack}))


def test_the_script_is_the_one_that_the_policy_allows(comparison):
    import base64
    import hashlib

    markup = comparison_page(comparison)
    script = re.findall(r"<script>(.*?)</script>", markup, re.S)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', markup)[0])
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_a_run_page_holds_metrics_slices_and_settings(evaluation, tmp_path):
    import numpy as np

    curve = invented_curve(0, 1.0, np.random.default_rng(0))
    path = write_run_report(
        tmp_path / "run.html",
        evaluation,
        title="DIN on Complete Journey",
        settings={"Model": "din"},
        data=invented_data(),
        training=curve,
    )
    parsed = check_page(path.read_text(encoding="utf-8"))
    for words in ("DIN on Complete Journey", "First meeting or repeat", "History length", "GAUC by request", "NDCG@10"):
        assert words in parsed.words


def test_a_run_without_values_is_still_a_page():
    group = next(g for g in invented_groups(20) if g.key == "din/full/match")
    p = group.seeds[0]
    found = evaluate(p.take((p.label == 0) & (p.list_id == 0)), lists=["promoted"], draws=10)
    check_page(run_page(found, title="nothing to see"))


def with_differences(comparison, beats):
    """A comparison in which rows beat the baseline on lists as told."""
    document = json.loads(comparison.model_dump_json())
    for row in document["rows"]:
        for name, result in row["lists"].items():
            if result["versus_baseline"] is not None:
                result["versus_baseline"]["beats"] = row["key"] in beats.get(name, ())
    return ComparisonResult.model_validate(document)


def test_the_headline_says_who_wins_everywhere(comparison):
    best = {name: comparison.ranked(name)[0].key for name in comparison.lists}
    if len(set(best.values())) == 1:
        text = headline(with_differences(comparison, {name: [key] for name, key in best.items()}))
        assert "on every candidate list" in text
    top = comparison.row(best["promoted"])
    assert row_label(top) in clause(with_differences(comparison, {"promoted": [top.key]}), "promoted")


def test_the_headline_says_plainly_that_nobody_wins(comparison):
    text = headline(with_differences(comparison, {}))
    assert text.count("nobody beats Boosted trees") == 2
    assert winner(with_differences(comparison, {}), "window") is None


def test_lists_with_different_winners_are_told_apart(comparison):
    text = headline(with_differences(comparison, {"promoted": ["din/full/match"], "window": ["sdim/full/match"]}))
    assert "on promoted, DIN beats Boosted trees" in text
    assert "on window, SDIM beats Boosted trees" in text


def test_each_model_has_one_colour(comparison):
    given = colours(comparison.rows)
    for row in comparison.rows:
        assert given[row.key] == given[f"{row.model}/full/match"]
    assert given["din/full/match"] != given["sdim/full/match"]


def test_a_comparison_of_one_list_and_of_bare_rows_is_a_page_too(comparison):
    document = json.loads(comparison.model_dump_json())
    document |= {"lists": ["window"], "contrasts": [], "settings": {}, "versions": {}, "caveats": []}
    document["data"] = {"name": "own"}
    for row in document["rows"]:
        row |= {"cost": {}, "training": []}
        row["lists"] = {"window": {"metrics": row["lists"]["window"]["metrics"]}}
    bare = ComparisonResult.model_validate(document)
    parsed = check_page(comparison_page(bare))
    assert "Candidate list" not in parsed.words
    assert "nobody" in headline(bare) or "only" in headline(bare)


def test_the_markdown_table_holds_every_row_and_marks_the_baseline(comparison):
    lines = markdown_table(comparison).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == len(comparison.rows) + 2
    assert sum("(baseline)" in line for line in rows) == 1


def test_text_between_tags_is_escaped_and_markup_is_not_escaped_twice():
    assert tag("p", tag("b", "<&>")) == "<p><b>&lt;&amp;&gt;</b></p>"
    assert tag("p", title='"x"') == '<p title="&quot;x&quot;"></p>'


def contrast(one, two):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_of_words_are_readable_in_light_and_dark(comparison):
    style = re.findall(r"<style>(.*?)</style>", comparison_page(comparison), re.S)[0]
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    schemes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]
    assert len(schemes) == 2
    for scheme in schemes:
        for name in ("ink", "ink2", "ink3", "good", "bad", *(f"c{i}" for i in range(8))):
            for ground in ("card", "paper"):
                assert contrast(scheme[name], scheme[ground]) >= 4.5, (name, ground)
