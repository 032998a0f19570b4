"""Chunked, tolerant readers: every line of a log is either in a chunk or named among its rejects.

Text files are cut into blocks of whole lines. A block that is plainly regular goes to the fast parser at once; any
other is looked at byte by byte first, so that a stray quote or a short line costs its own line only, never the rest
of the file. Row numbers are line numbers of text files (the header is line 1) and 1-based rows of Parquet files.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import polars as pl

from sostenuto.data.prepared import Array
from sostenuto.data.spec import Files
from sostenuto.schema.errors import DataError, MissingExtra, SpecError, did_you_mean

BLOCK_BYTES = 1 << 24
PARQUET_ROWS = 500_000
LONGEST_LINE = 1 << 28  # a "line" beyond this is no text log
LONGEST_RECORD_LINES = 1_000  # lines that one quoted field may span before its opening quote is called stray
SHOWN_BYTES = 4_096  # of a rejected line

REJECT_SCHEMA = {"file": pl.String, "row": pl.Int64, "reason": pl.String, "raw": pl.String}

WRONG_FIELDS = "wrong number of fields"
STRAY_QUOTE = "misplaced or unbalanced quote"
BAD_UTF8 = "invalid UTF-8"
BAD_JSON = "invalid JSON"
NO_OBJECT = "not a JSON object"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawChunk:
    """Some rows of one file as they were written, and the lines among them that could not be cut into fields."""

    file: Path
    rows: Array  # (n,) int64 row numbers of `frame`
    frame: pl.DataFrame  # the asked columns; text, or list of text; Parquet columns keep their types
    rejects: pl.DataFrame  # REJECT_SCHEMA
    consumed: int  # bytes of the file read so far
    raw: Callable[[Array], list[str | None]]  # positions in `frame` -> the rows as text

    @property
    def read(self) -> int:
        """Rows read: kept here or rejected."""
        return len(self.rows) + len(self.rejects)


@dataclass(frozen=True, slots=True)
class _Block:
    """Whole lines of a text file, each ending in a line feed."""

    data: bytes
    first_line: int
    consumed: int


def rejects_frame(file: Path, rows: Array, reasons: list[str] | str, raw: list[str | None]) -> pl.DataFrame:
    """Return rejected rows as a table; one reason for all, or one each."""
    reason = [reasons] * len(rows) if isinstance(reasons, str) else reasons
    columns = {"file": [str(file)] * len(rows), "row": np.asarray(rows, np.int64), "reason": reason, "raw": raw}
    return pl.DataFrame(columns, schema=REJECT_SCHEMA)


def file_format(path: Path, source: Files) -> str:
    """Return csv, tsv, jsonl or parquet: as the spec says, else by suffix."""
    if source.format is not None:
        return source.format
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in {".gz", ".zst"}]
    known = {".csv": "csv", ".txt": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet"}
    known |= {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
    last = suffixes[-1] if suffixes else ""
    if last not in known:
        raise SpecError(f"format must be csv, tsv, jsonl or parquet, the name {path.name!r} tells none; set `format`")
    return known[last]


class _Inflater(Protocol):
    """What gzip-like decompressors of the standard library and of zstandard share."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _zstd() -> Callable[[], _Inflater]:
    try:
        import zstandard
    except ImportError:
        try:
            from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # Python 3.14
        except ImportError as error:
            raise MissingExtra(
                "reading .zst needs the package zstandard, which is not installed; pip install 'sostenuto[zstd]'"
            ) from error
        return zstd.ZstdDecompressor  # type: ignore[no-any-return, unused-ignore]
    return lambda: zstandard.ZstdDecompressor().decompressobj()


def _inflated(file: BinaryIO, make: Callable[[], _Inflater], path: Path, block_bytes: int) -> Iterator[bytes]:
    """Decompress frame after frame; a file that ends inside one is an error, never a shorter file."""
    inflater: _Inflater | None = None
    while data := file.read(max(block_bytes // 4, 1)):
        while data:
            inflater = inflater or make()
            out = inflater.decompress(data)
            if out:
                yield out
            data = b""
            if inflater.eof:
                data, inflater = inflater.unused_data, None
    if inflater is not None:
        raise EOFError


def _bytes(path: Path, block_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield pieces of the decompressed file and how many bytes of the file were consumed."""
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            if suffix == ".gz":
                with gzip.GzipFile(fileobj=file) as plain:
                    while piece := plain.read(block_bytes):
                        yield piece, file.tell()
            elif suffix == ".zst":
                for piece in _inflated(file, _zstd(), path, block_bytes):
                    yield piece, file.tell()
            else:
                while piece := file.read(block_bytes):
                    yield piece, file.tell()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, error) from error
    except Exception as error:  # zstandard and compression.zstd have an error class of their own
        if type(error).__name__ == "ZstdError":
            raise _damaged(path, error) from error
        raise


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"compressed file must be whole, {path} is truncated or damaged ({error or 'it ends too early'}); get it again"
    )


def _blocks(path: Path, block_bytes: int) -> Iterator[_Block]:
    held: list[bytes] = []
    line, consumed = 1, 0
    for piece, consumed in _bytes(path, block_bytes):
        cut = piece.rfind(b"\n") + 1
        if cut == 0:
            held.append(piece)
            if sum(map(len, held)) > LONGEST_LINE:
                raise DataError(f"lines must be shorter than {LONGEST_LINE} bytes, line {line} of {path} is not text")
            continue
        data = b"".join([*held, piece[:cut]])
        held = [piece[cut:]] if cut < len(piece) else []
        yield _Block(data, line, consumed)
        line += data.count(b"\n")
    rest = b"".join(held)
    if rest:
        yield _Block(rest + b"\n", line, consumed)


def _line_text(line: bytes, encoding: str) -> str:
    return line[:SHOWN_BYTES].rstrip(b"\r\n").decode(encoding, errors="backslashreplace")


@dataclass(slots=True)
class _Lines:
    """Where the lines of a block start and end, found only when somebody asks."""

    data: bytes
    starts: Array = field(init=False)
    ends: Array = field(init=False)  # position of the line feed

    def __post_init__(self) -> None:
        self.ends = np.flatnonzero(np.frombuffer(self.data, np.uint8) == 10)
        self.starts = np.concatenate(([0], self.ends[:-1] + 1)).astype(np.int64)

    def text(self, at: int, encoding: str) -> str:
        return _line_text(self.data[self.starts[at] : self.ends[at]], encoding)


def _require(path: Path, wanted: list[str], present: list[str]) -> None:
    twice = sorted({name for name in wanted if present.count(name) > 1})
    if twice:
        raise SpecError(f"column names must be unique, {path} has {twice[0]!r} more than once; name them with `header`")
    for name in wanted:
        if name not in present:
            raise SpecError(
                f"column {name!r} must be in {path}, which has {', '.join(present[:40])}."
                f"{did_you_mean(name, present)} Correct the spec"
            )


class _TextReader:
    """CSV and TSV."""

    def __init__(self, path: Path, source: Files, columns: list[str], separator: str, block_bytes: int) -> None:
        self.path, self.source, self.columns = path, source, columns
        self.separator = separator.encode()
        self.quote = source.quote.encode()
        self.block_bytes = block_bytes
        self.names: list[str] = list(source.header or ())
        if self.names:
            _require(path, columns, self.names)

    def _fields(self, record: str) -> list[str] | None:
        """Cut one record; None where its quotes are wrong."""
        if not self.source.quote:
            return record.split(self.source.separator or self.separator.decode())
        reader = csv.reader([record], delimiter=self.separator.decode(), quotechar=self.source.quote, strict=True)
        try:
            return next(reader, [])
        except csv.Error:
            return None

    def _take_header(self, block: _Block) -> _Block:
        data, line = block.data, block.first_line
        if line == 1 and data.startswith(b"\xef\xbb\xbf"):
            data = data[3:]
        while not self.names and data:
            end = data.index(b"\n")
            text = data[:end].rstrip(b"\r").decode(self.source.encoding, errors="replace")
            data, line = data[end + 1 :], line + 1
            if text:
                names = self._fields(text)
                if names is None:
                    raise DataError(f"header must be readable, line {line - 1} of {self.path} has a stray quote")
                self.names = [name.strip() for name in names]
                _require(self.path, self.columns, self.names)
        return _Block(data, line, block.consumed)

    def chunks(self) -> Iterator[RawChunk]:
        blocks = map(self._take_header, _blocks(self.path, self.block_bytes))
        if self.source.multiline and self.quote:
            yield from self._multiline(blocks)
            return
        for block in blocks:
            if block.data:
                yield self._chunk(block)
        if not self.names:
            raise DataError(f"a text file must have a header line, {self.path} is empty; name columns with `header`")

    def _chunk(self, block: _Block) -> RawChunk:
        data = block.data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        if self.source.encoding == "latin-1" and not data.isascii():
            data = data.decode("latin-1").encode()
        frame = self._fast(data)
        if frame is not None:
            return self._whole(block, data, frame, np.arange(len(frame), dtype=np.int64), [])
        lines = _Lines(data)
        kept, bad = self._sift(lines)
        if len(kept) == len(lines.ends):
            clean = data
        else:
            flags = np.zeros(len(lines.ends), bool)
            flags[kept] = True
            mask = np.repeat(flags, lines.ends + 1 - lines.starts)
            clean = np.frombuffer(data, np.uint8)[mask].tobytes()
        frame = self._parse(clean) if len(kept) else pl.DataFrame(schema=dict.fromkeys(self.columns, pl.String))
        if len(frame) != len(kept):  # our sieve and the parser disagree: go line by line, lose nothing
            frame, kept, bad = self._slowly(lines)
        return self._whole(block, data, frame, kept, bad)

    def _whole(
        self, block: _Block, data: bytes, frame: pl.DataFrame, kept: Array, bad: list[tuple[int, str]]
    ) -> RawChunk:
        def raw(positions: Array) -> list[str | None]:
            lines = _Lines(data)
            return [lines.text(int(kept[at]), "utf-8") for at in positions]

        lines = _Lines(data) if bad else None
        shown: list[str | None] = [] if lines is None else [lines.text(at, "utf-8") for at, _ in bad]
        rows = np.array([at for at, _ in bad], np.int64) + block.first_line
        return RawChunk(
            file=self.path,
            rows=kept + block.first_line,
            frame=frame,
            rejects=rejects_frame(self.path, rows, [reason for _, reason in bad], shown),
            consumed=block.consumed,
            raw=raw,
        )

    def _parse(self, data: bytes) -> pl.DataFrame:
        # every column is parsed, not the asked ones only: else the parser would not notice lines with more fields
        names = [f"column_{at}" for at in range(1, len(self.names) + 1)]
        frame = pl.read_csv(
            data,
            has_header=False,
            schema=dict.fromkeys(names, pl.String),
            separator=self.separator.decode(),
            quote_char=self.source.quote or None,
        )
        return frame.select(pl.col(names[self.names.index(column)]).alias(column) for column in self.columns)

    def _fast(self, data: bytes) -> pl.DataFrame | None:
        """Parse a block whose lines are plainly all regular; None where that is not plain."""
        if (self.quote and self.quote in data) or b"\n\n" in data or data.startswith(b"\n"):
            return None
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError:
                return None
        array = np.frombuffer(data, np.uint8)
        num_lines = np.count_nonzero(array == 10)
        if np.count_nonzero(array == self.separator[0]) != num_lines * (len(self.names) - 1):
            return None
        try:
            frame = self._parse(data)  # refuses lines with more fields; with equal totals there are no shorter ones
        except pl.exceptions.PolarsError:
            return None
        return frame if len(frame) == num_lines else None

    def _sift(self, lines: _Lines) -> tuple[Array, list[tuple[int, str]]]:
        """Tell the lines that can be parsed from those that cannot, and why; empty lines are neither."""
        array = np.frombuffer(lines.data, np.uint8)
        separators = np.flatnonzero(array == self.separator[0])
        num_lines = len(lines.ends)
        stray = np.zeros(num_lines, bool)
        if self.quote:
            quotes = np.flatnonzero(array == self.quote[0])
            line = np.searchsorted(lines.ends, quotes)
            first = np.searchsorted(quotes, lines.starts)  # quotes before each line
            opening = (np.arange(len(quotes)) - first[line]) % 2 == 0
            stray |= np.diff(np.append(first, len(quotes))) % 2 == 1
            before = np.where(quotes > lines.starts[line], array[np.maximum(quotes - 1, 0)], 10)
            after = array[quotes + 1]  # a line feed ends every line
            edges = [10, self.separator[0], self.quote[0]]
            wrong = np.where(opening, ~np.isin(before, edges), ~np.isin(after, edges))
            # an opening quote may follow a quote only as the second of a doubled pair, which has a closing one before
            doubled = opening & (before == self.quote[0]) & (np.arange(len(quotes)) == first[line])
            stray[line[wrong | doubled]] = True
            inside = (np.searchsorted(quotes, separators) - first[np.searchsorted(lines.ends, separators)]) % 2 == 1
            separators = separators[~inside]
        count = np.diff(np.searchsorted(separators, np.append(lines.starts, lines.ends[-1] + 1)))
        blank = lines.ends == lines.starts
        short = count != len(self.names) - 1
        invalid = np.zeros(num_lines, bool)
        high = np.flatnonzero(array >= 0x80)
        for at in np.unique(np.searchsorted(lines.ends, high)).tolist():
            try:
                lines.data[lines.starts[at] : lines.ends[at]].decode()
            except UnicodeDecodeError:
                invalid[at] = True
        bad = ~blank & (stray | short | invalid)
        reasons = np.where(invalid, BAD_UTF8, np.where(stray, STRAY_QUOTE, WRONG_FIELDS))
        named = [(int(at), str(reasons[at])) for at in np.flatnonzero(bad)]
        return np.flatnonzero(~blank & ~bad), named

    def _slowly(self, lines: _Lines) -> tuple[pl.DataFrame, Array, list[tuple[int, str]]]:
        kept, bad, records = [], [], []
        for at in range(len(lines.ends)):
            line = lines.data[lines.starts[at] : lines.ends[at]]
            if not line:
                continue
            fields, reason = self._record(line)
            if fields is None:
                bad.append((at, reason))
            else:
                kept.append(at)
                records.append(fields)
        return self._frame(records), np.array(kept, np.int64), bad

    def _record(self, data: bytes) -> tuple[list[str] | None, str]:
        try:
            fields = self._fields(data.decode())
        except UnicodeDecodeError:
            return None, BAD_UTF8
        if fields is None:
            return None, STRAY_QUOTE
        return (fields, "") if len(fields) == len(self.names) else (None, WRONG_FIELDS)

    def _frame(self, records: list[list[str]]) -> pl.DataFrame:
        places = {column: self.names.index(column) for column in self.columns}
        columns = {column: [fields[at] or None for fields in records] for column, at in places.items()}
        return pl.DataFrame(columns, schema=dict.fromkeys(self.columns, pl.String))

    def _multiline(self, blocks: Iterator[_Block]) -> Iterator[RawChunk]:
        """Quoted fields may span lines; an opening quote that finds no end costs its own line only."""
        waiting: list[tuple[int, bytes]] = []  # lines not yet part of a record
        for block in blocks:
            numbered = enumerate(block.data.split(b"\n")[:-1], block.first_line)
            waiting += [(number, line.rstrip(b"\r")) for number, line in numbered]
            yield self._records(waiting, block.consumed, last=False)
        if waiting:
            yield self._records(waiting, self.path.stat().st_size, last=True)

    def _records(self, waiting: list[tuple[int, bytes]], consumed: int, *, last: bool) -> RawChunk:
        """Turn lines into records, taking them from `waiting`; an unfinished record stays there."""
        rows, records, raws, bad = [], [], [], []
        encoding = self.source.encoding
        at = 0
        while at < len(waiting):
            number, data = waiting[at]
            end = at + 1
            while data.count(self.quote) % 2 and end < len(waiting) and end - at < LONGEST_RECORD_LINES:
                data += b"\n" + waiting[end][1]
                end += 1
            if data.count(self.quote) % 2:
                if not last and end == len(waiting) and end - at < LONGEST_RECORD_LINES:
                    break
                data, end = waiting[at][1], at + 1
            at = end
            if not data:
                continue
            if encoding == "latin-1":
                data = data.decode("latin-1").encode()
            fields, reason = self._record(data)
            if fields is None:
                bad.append((number, reason, _line_text(data, "utf-8")))
            else:
                rows.append(number)
                records.append(fields)
                raws.append(data)
        del waiting[:at]

        def raw(positions: Array) -> list[str | None]:
            return [_line_text(raws[at], "utf-8") for at in positions]

        numbers = np.array([number for number, _, _ in bad], np.int64)
        rejects = rejects_frame(self.path, numbers, [b[1] for b in bad], [b[2] for b in bad])
        return RawChunk(
            file=self.path,
            rows=np.array(rows, np.int64),
            frame=self._frame(records),
            rejects=rejects,
            consumed=consumed,
            raw=raw,
        )


def _plain_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value != value:
        return None
    return json.dumps(value, ensure_ascii=False)


def _json_column(values: list[Any]) -> pl.Series:
    if any(isinstance(value, list) for value in values):
        lists = [[_plain_text(v) for v in value] if isinstance(value, list) else None for value in values]
        scalars = [value for value in values if value is not None and not isinstance(value, list)]
        if not scalars:
            return pl.Series(lists, dtype=pl.List(pl.String))
    return pl.Series([_plain_text(value) for value in values], dtype=pl.String)


def _jsonl_chunks(path: Path, source: Files, columns: list[str], block_bytes: int) -> Iterator[RawChunk]:
    for block in _blocks(path, block_bytes):
        rows, objects, kept_lines, bad = [], [], [], []
        for number, data in enumerate(block.data.split(b"\n")[:-1], block.first_line):
            line = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
            if not line.strip():
                continue
            try:
                parsed = json.loads(line.decode(source.encoding))
            except UnicodeDecodeError:
                bad.append((number, BAD_UTF8, line))
                continue
            except (ValueError, RecursionError):
                bad.append((number, BAD_JSON, line))
                continue
            if not isinstance(parsed, dict):
                bad.append((number, NO_OBJECT, line))
                continue
            rows.append(number)
            objects.append(parsed)
            kept_lines.append(line)
        frame = pl.DataFrame({name: _json_column([o.get(name) for o in objects]) for name in columns})

        def raw(positions: Array, lines: list[bytes] = kept_lines) -> list[str | None]:
            return [_line_text(lines[at], "utf-8") for at in positions]

        yield RawChunk(
            file=path,
            rows=np.array(rows, np.int64),
            frame=frame,
            rejects=rejects_frame(
                path,
                np.array([number for number, _, _ in bad], np.int64),
                [reason for _, reason, _ in bad],
                [_line_text(line, source.encoding) for _, _, line in bad],
            ),
            consumed=block.consumed,
            raw=raw,
        )


def _parquet_chunks(path: Path, columns: list[str], rows_at_once: int) -> Iterator[RawChunk]:
    size = path.stat().st_size
    try:
        table = pl.scan_parquet(path, glob=False)
        names = table.collect_schema().names()
        _require(path, columns, names)
        total = int(table.select(pl.len()).collect().item())
        for start in range(0, total, rows_at_once):
            frame = table.select(columns).slice(start, rows_at_once).collect()

            def raw(positions: Array, frame: pl.DataFrame = frame) -> list[str | None]:
                return [json.dumps(frame.row(int(at), named=True), default=str) for at in positions]

            yield RawChunk(
                file=path,
                rows=np.arange(start + 1, start + len(frame) + 1, dtype=np.int64),
                frame=frame,
                rejects=pl.DataFrame(schema=REJECT_SCHEMA),
                consumed=size * (start + len(frame)) // max(total, 1),
                raw=raw,
            )
    except (pl.exceptions.PolarsError, OSError) as error:
        if isinstance(error, SpecError):
            raise
        raise DataError(f"Parquet file must be readable, {path} is not ({error}); write it again") from error


def read_chunks(
    path: Path,
    source: Files,
    columns: list[str],
    *,
    block_bytes: int = BLOCK_BYTES,
    parquet_rows: int = PARQUET_ROWS,
) -> Iterator[RawChunk]:
    """Yield the rows of one file in order, `columns` of them.

    Args:
        block_bytes:  text read at once, bytes.
        parquet_rows: rows of a Parquet file read at once.
    Raises:
        DataError: the file as a whole cannot be read (truncated, damaged, no text).
        SpecError: a column is not there.
        MissingExtra: a .zst file without the package that reads it.
    """
    columns = list(dict.fromkeys(columns))
    kind = file_format(path, source)
    if kind == "parquet":
        yield from _parquet_chunks(path, columns, parquet_rows)
    elif kind == "jsonl":
        yield from _jsonl_chunks(path, source, columns, block_bytes)
    else:
        separator = source.separator or ("\t" if kind == "tsv" else ",")
        yield from _TextReader(path, source, columns, separator, block_bytes).chunks()


__all__ = [
    "BAD_JSON",
    "BAD_UTF8",
    "BLOCK_BYTES",
    "NO_OBJECT",
    "PARQUET_ROWS",
    "REJECT_SCHEMA",
    "STRAY_QUOTE",
    "WRONG_FIELDS",
    "RawChunk",
    "file_format",
    "read_chunks",
    "rejects_frame",
]
