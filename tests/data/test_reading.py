"""Readers lose nothing: every line is a row, a named reject, the header or blank, under its own number."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sostenuto.data.reading import (
    BAD_JSON,
    BAD_UTF8,
    NO_OBJECT,
    STRAY_QUOTE,
    WRONG_FIELDS,
    read_chunks,
)
from sostenuto.data.spec import Files
from sostenuto.schema.errors import DataError, SpecError


def read_all(path: Path, columns: list[str], *, block_bytes: int = 1 << 20, **settings_of_files):
    """Return {row number: values}, {row number: (reason, raw)}."""
    kept, rejected = {}, {}
    for chunk in read_chunks(path, Files(files=(str(path),), **settings_of_files), columns, block_bytes=block_bytes):
        assert len(chunk.rows) == len(chunk.frame)
        assert len(chunk.raw(np.arange(len(chunk.rows)))) == len(chunk.rows)
        kept |= dict(zip(chunk.rows.tolist(), chunk.frame.rows(), strict=True))
        for file, row, reason, raw in chunk.rejects.iter_rows():
            assert file == str(path)
            rejected[row] = (reason, raw)
    return kept, rejected


BAD_LINES = (
    b"\xef\xbb\xbfuser,item,note\r\n"
    b'1,"a,b",x\r\n'
    b"\r\n"
    b"2,short\r\n"
    b'3,"say ""hi""",y\r\n'
    b'4,"open,y\r\n'
    b'5,mid"dle,y\r\n'
    b"6,\xff,y\r\n"
    b"7,a,b,c\r\n"
    b'8,"",y\r\n'
    b"9,\xc3\xa4,last"
)


@pytest.mark.parametrize("block_bytes", [1, 7, 30, 1 << 20])
def test_every_bad_line_is_named_under_its_number_whatever_the_blocks(tmp_path, block_bytes):
    path = tmp_path / "log.csv"
    path.write_bytes(BAD_LINES)
    kept, rejected = read_all(path, ["item", "user"], block_bytes=block_bytes)
    assert {row: (item or "", user) for row, (item, user) in kept.items()} == {
        2: ("a,b", "1"),
        5: ('say "hi"', "3"),
        10: ("", "8"),
        11: ("ä", "9"),
    }
    assert {row: reason for row, (reason, _) in rejected.items()} == {
        4: WRONG_FIELDS,
        6: STRAY_QUOTE,
        7: STRAY_QUOTE,
        8: BAD_UTF8,
        9: WRONG_FIELDS,
    }
    assert rejected[8][1] == "6,\\xff,y"
    assert rejected[9][1] == "7,a,b,c"


line_pieces = st.lists(st.sampled_from(["a", "b", ",", '"', '""', "ä", " ", "1"]), max_size=8).map("".join)


def slow_line(line: str, fields: int) -> list[str] | str:
    """Cut one line as RFC 4180 says, character by character; a text is the reason why it cannot be."""
    values, at = [], 0
    while True:
        if at < len(line) and line[at] == '"':
            value, at = "", at + 1
            while True:
                if at >= len(line):
                    return STRAY_QUOTE
                if line[at] == '"':
                    if line[at + 1 : at + 2] == '"':
                        value, at = value + '"', at + 2
                        continue
                    at += 1
                    break
                value, at = value + line[at], at + 1
            if at < len(line) and line[at] != ",":
                return STRAY_QUOTE
        else:
            end = line.find(",", at)
            end = len(line) if end < 0 else end
            value, at = line[at:end], end
            if '"' in value:
                return STRAY_QUOTE
        values.append(value)
        if at >= len(line):
            return values if len(values) == fields else WRONG_FIELDS
        at += 1


@given(st.lists(line_pieces, max_size=12), st.sampled_from([3, 64, 1 << 16]))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sieve_equals_a_reader_that_goes_character_by_character(tmp_path, lines, block_bytes):
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["x,y", *lines]) + "\n", encoding="utf-8")
    kept, rejected = read_all(path, ["x", "y"], block_bytes=block_bytes)
    for number, line in enumerate(lines, 2):
        if not line:
            assert number not in kept
            assert number not in rejected
            continue
        expected = slow_line(line, 2)
        if isinstance(expected, str):
            # a line that is wrong in two ways may be named by either
            assert number in rejected, (line, kept.get(number))
        else:
            assert [value or "" for value in kept[number]] == expected


rows_of_text = st.lists(
    st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=6)] * 3), max_size=10
)


@given(rows_of_text)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_csv_module_writes_is_read_back(tmp_path, rows):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([("a", "b", "c"), *rows])
    path = tmp_path / "log.csv"
    path.write_text(out.getvalue(), encoding="utf-8")
    kept, rejected = read_all(path, ["a", "b", "c"], block_bytes=50)
    assert not rejected
    assert [tuple(value or "" for value in values) for values in kept.values()] == rows


def test_multiline_fields_are_read_where_the_spec_says_so(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text('id,text\n1,"two\nlines"\n2,"open\n3,fine\n4,"a\n\nb"\n', encoding="utf-8")
    for block_bytes in (5, 1 << 16):
        kept, rejected = read_all(path, ["id", "text"], multiline=True, block_bytes=block_bytes)
        # the stray quote of line 4 pairs with the one of line 6: the record is refused, and line 5 with it is not lost
        assert kept[2] == ("1", "two\nlines")
        assert 3 not in kept
        assert rejected[4][0] == STRAY_QUOTE
        single = read_all(path, ["id", "text"], block_bytes=block_bytes)
        assert single[0][5] == ("3", "fine")
        assert single[1][2][0] == STRAY_QUOTE


def test_quotes_mean_nothing_where_the_spec_says_so(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text('a\tb\n1\t5" pipe\n"2\tx\n', encoding="utf-8")
    kept, rejected = read_all(path, ["a", "b"], quote="")
    assert kept == {2: ("1", '5" pipe'), 3: ('"2', "x")}
    assert not rejected


def test_latin_1_and_files_without_a_header_are_read(tmp_path):
    path = tmp_path / "log.dat"
    path.write_bytes("1;Café\n2;Bär\n".encode("latin-1"))
    given_settings = {"format": "csv", "separator": ";", "header": ("id", "name"), "encoding": "latin-1"}
    kept, _ = read_all(path, ["name"], **given_settings)
    assert kept == {1: ("Café",), 2: ("Bär",)}


def test_json_lines_name_what_is_no_object(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'{"a": 1, "b": [1, "x"]}\n{"a": tru}\n[1]\n\n{"a": "\xff"}\n{"a": true, "c": null}\n{"b": null}\n'
    )
    for block_bytes in (4, 1 << 16):
        kept, rejected = read_all(path, ["a", "b"], block_bytes=block_bytes)
        assert {row: reason for row, (reason, _) in rejected.items()} == {2: BAD_JSON, 3: NO_OBJECT, 5: BAD_UTF8}
        assert kept[1][0] == "1"
        assert list(kept[1][1]) == ["1", "x"]
        assert kept[6] == ("true", None)
        assert kept[7] == (None, None)


def test_parquet_rows_keep_type_and_number(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"a": range(10), "b": [str(n) for n in range(10)]}).write_parquet(path, row_group_size=3)
    chunks = list(read_chunks(path, Files(files="x"), ["a"], parquet_rows=4))
    assert [len(chunk.rows) for chunk in chunks] == [4, 4, 2]
    assert np.concatenate([chunk.rows for chunk in chunks]).tolist() == list(range(1, 11))
    assert chunks[0].frame["a"].to_list() == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("end", [3, -1, -9])
def test_truncated_file_is_an_error_that_names_it(tmp_path, suffix, end):
    text = ("a,b\n" + "1,2\n" * 5_000).encode()
    data = gzip.compress(text) if suffix == "gz" else pytest.importorskip("zstandard").compress(text)
    path = tmp_path / f"log.csv.{suffix}"
    path.write_bytes(data[:end])
    with pytest.raises(DataError, match=r"log\.csv\.\w+ is truncated or damaged"):
        read_all(path, ["a"])


def test_garbage_under_a_known_suffix_is_an_error_that_names_it(tmp_path):
    for name in ("log.csv.gz", "log.parquet"):
        (tmp_path / name).write_bytes(b"this is neither")
        with pytest.raises(DataError, match=name):
            read_all(tmp_path / name, ["a"])


def test_missing_column_names_the_nearest(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item\n1,2\n", encoding="utf-8")
    with pytest.raises(SpecError, match="Did you mean 'user_id'"):
        read_all(path, ["user_ids"])


def test_format_that_no_suffix_tells_must_be_said(tmp_path):
    (tmp_path / "log").write_text("a\n1\n", encoding="utf-8")
    with pytest.raises(SpecError, match="set `format`"):
        read_all(tmp_path / "log", ["a"])
    assert read_all(tmp_path / "log", ["a"], format="csv")[0] == {2: ("1",)}
