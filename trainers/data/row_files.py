"""Rows of a file one after the other, and again by position: memory does not grow with the file.

A position is the byte where a JSON object starts, or the number of a parquet row. Everything that
is wrong with the file as a whole raises `UserError` on the way.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from trainers.data.errors import UserError
from trainers.data.parquet_rows import ParquetRows
from trainers.data.record_rows import RecordRows

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
RECORDS = ".msgpack"
MAX_ROW_BYTES = 2**26
"""Longest JSON object that is read: a row holds text and paths, no pixels."""
PIECE_BYTES = 2**18
SPACE = re.compile(r"[ \t\r\n]*")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
Row = dict[str, Any]


class RowFile(Protocol):
    """A data file whose rows can be read in order and by position."""

    path: Path
    kind: str
    """What the file is, for the line that describes it."""

    def rows(self) -> Iterator[tuple[int, int, Row]]:
        """Number (the first is 1; of a JSONL file, the line), position and row."""
        ...

    def read(self, positions: Sequence[int]) -> list[Row]:
        """The rows at these positions, in the order asked for."""
        ...


def open_rows(path: Path, image_root: Path | None = None) -> RowFile:
    """The reader that fits the file's suffix and, for JSON, its first character.

    `image_root` is only for records, whose images are in a store.
    """
    if path.suffix.lower() not in (*JSON_SUFFIXES, ".parquet", RECORDS):
        raise UserError(
            f"{path}: unknown suffix {path.suffix!r}; use .jsonl, .json, .parquet or {RECORDS}"
        )
    if not path.is_file():
        raise UserError(f"{path}: {_not_found(path)}")
    if path.suffix.lower() == RECORDS:
        return RecordRows(path, image_root)
    if path.suffix.lower() == ".parquet":
        return ParquetRows(path)
    with _opened(path) as file:
        start = file.read(PIECE_BYTES).removeprefix(BYTE_ORDER_MARK).lstrip()
    return JsonArray(path) if start.startswith(b"[") else JsonLines(path)


def _not_found(path: Path) -> str:
    if path.exists():
        return "is not a file"
    if not path.parent.is_dir():
        return f"no such file, and no folder {path.parent}"
    names = [entry.name for entry in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"no such file; nearest names: {', '.join(near)}" if near else "no such file"


class JsonLines:
    """One object per line."""

    kind = "JSONL"

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> Iterator[tuple[int, int, Row]]:
        """Every line that is not blank."""
        position = number = 0
        with _opened(self.path) as file:
            # Lines of bytes: text would also be split at separators that JSON allows in a string.
            while line := file.readline(MAX_ROW_BYTES + 1):
                number += 1
                if line.strip():
                    yield number, position, self._parse(line, f"line {number}")
                position += len(line)

    def read(self, positions: Sequence[int]) -> list[Row]:
        """The lines that start at these bytes."""
        found = []
        with _opened(self.path) as file:
            for position in positions:
                file.seek(position)
                line = file.readline(MAX_ROW_BYTES + 1)
                found.append(self._parse(line, f"line at byte {position}"))
        return found

    def _parse(self, line: bytes, where: str) -> Row:
        if len(line) > MAX_ROW_BYTES:
            raise UserError(f"{self.path}: {where} is longer than {MAX_ROW_BYTES} bytes")
        return _object(line.removeprefix(BYTE_ORDER_MARK), self.path, where)


class JsonArray:
    """One array of objects, as LLaVA, BPO and others release their data; never held as a whole."""

    kind = "JSON"

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> Iterator[tuple[int, int, Row]]:
        """Every element; a damaged one, or something after the array, is an error."""
        with _opened(self.path) as file:
            offset = file.read(PIECE_BYTES).index(b"[") + 1
            for number, (position, data) in enumerate(self._elements(file, offset), 1):
                yield number, position, _object(data, self.path, f"element {number}")

    def read(self, positions: Sequence[int]) -> list[Row]:
        """The elements that start at these bytes."""
        found = []
        with _opened(self.path) as file:
            for position in positions:
                _, data = next(self._elements(file, position))
                found.append(_object(data, self.path, f"element at byte {position}"))
        return found

    def _elements(self, file: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
        """Where each element from `offset` on starts, and its bytes.

        The structure of JSON is ASCII, so a window of Latin-1 text, in which every character is
        one byte, shows where an element ends.
        """
        decoder = json.JSONDecoder()
        file.seek(offset)
        text, at, size = "", 0, PIECE_BYTES
        number = 0
        while True:
            at = _after_space(text, at)
            if text[at : at + 1] == "]":
                if text[at + 1 :].strip() or file.read(PIECE_BYTES).strip():
                    raise UserError(f"{self.path}: something follows the array; remove it")
                return
            reason = "cut off"
            if at < len(text):
                try:
                    _, end = decoder.raw_decode(text, at)
                    after = _after_space(text, end)
                    if text[after : after + 1] in (",", "]") and after < len(text):
                        number += 1
                        yield offset + at, text[at:end].encode("latin-1")
                        at = after + (text[after] == ",")
                        size = PIECE_BYTES
                        continue
                except (ValueError, RecursionError) as error:
                    reason = " ".join(str(error).split())
            more = file.read(size)
            if not more or len(text) - at > MAX_ROW_BYTES:
                raise UserError(
                    f"{self.path}: element {number + 1} is not JSON ({reason}); "
                    "write an array of objects, or one object per line"
                )
            # Twice as much each time: a long element is not parsed once per piece.
            size = min(2 * size, MAX_ROW_BYTES)
            offset, text, at = offset + at, text[at:] + more.decode("latin-1"), 0


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _after_space(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    assert match is not None, "matches the empty text"
    return match.end()


def _object(data: bytes, path: Path, where: str) -> Row:
    try:
        row = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: {where} is not JSON ({reason}); write one object per line"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{path}: {where} is a {type(row).__name__}; write one object per line")
    return row
