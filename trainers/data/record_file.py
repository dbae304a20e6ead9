r"""An append-only file of records that survives a kill at any byte.

    file   = header frame*
    header = "QUARTET\n" (8 bytes), schema version (uint32)
    frame  = payload length (uint32), crc32 of the payload (uint32), payload
    payload = msgpack map {"type": class name, field: value, ...}

Integers are little-endian. Frames go to the operating system in order, one or several in a write,
so a killed process leaves whole frames and at most one cut one, which `read_records` drops and
reports.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from trainers.data.errors import UserError
from trainers.data.records import SCHEMA_VERSION, Record
from trainers.data.wire import from_wire, to_wire

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

__all__ = ["ReadResult", "RecordWriter", "from_wire", "read_records", "to_wire"]

MAGIC = b"QUARTET\n"
HEADER = MAGIC + struct.pack("<I", SCHEMA_VERSION)
FRAME = struct.Struct("<II")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """Example: `ReadResult(records=(...), dropped_bytes=17, warning="f.msgpack: cut off ...")`"""

    records: tuple[Record, ...]
    dropped_bytes: int
    """Bytes after the last whole record; 0 for a file that was closed in order."""
    warning: str | None
    """One line about the dropped bytes, None when there are none."""


class RecordWriter:
    """Appends records to `path`, which it creates (with its folder) where it is missing.

    A file that an earlier process left with a cut-off tail is truncated to its last whole record;
    `warning` and the log say so. With `repair=False` such a file is refused instead. One writer
    at a time.
    """

    def __init__(self, path: str | os.PathLike[str], *, repair: bool = True) -> None:
        self.path = Path(path)
        self.warning: str | None = None
        self._size = 0
        if self.path.exists():
            self._size = self._repaired_size(repair)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._file.truncate(self._size)
        if self._size == 0:
            self._write(HEADER)

    def _repaired_size(self, repair: bool) -> int:
        result = read_records(self.path)
        if result.warning is not None:
            if not repair:
                raise UserError(f"{result.warning}; truncate it before appending")
            self.warning = f"{result.warning}; truncated before appending"
            logger.warning("%s", self.warning)
        return self.path.stat().st_size - result.dropped_bytes

    def append(self, record: Record) -> None:
        """Writes one frame and hands it to the operating system before it returns."""
        self._write(self._frame(record))

    def extend(self, records: Iterable[Record]) -> None:
        """The same for several: all of them, or if one cannot be stored none."""
        self._write(b"".join([self._frame(record) for record in records]))

    def _frame(self, record: Record) -> bytes:
        where = f"{self.path}: a {type(record).__name__} that cannot be stored"
        wire = to_wire(record)
        from_wire(wire, where)
        try:
            payload: bytes = msgpack.packb(wire, unicode_errors="surrogatepass")
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: {error}; records hold plain Python values") from error
        return FRAME.pack(len(payload), zlib.crc32(payload)) + payload

    def _write(self, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += self._file.write(data[done:])
        except OSError as error:
            # A torn frame followed by a whole one would read as corruption.
            self._file.truncate(self._size)
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._size += len(data)

    def close(self) -> None:
        """Waits until the disk has the file; a second call does nothing."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_records(path: str | os.PathLike[str]) -> ReadResult:
    """Every whole record of the file, in order.

    A file cut at any byte loses at most the record that was cut, and `warning` says so. Damage
    before the last frame, another schema version or a foreign file raise `UserError`: there,
    reading on would hide the loss of more than one record.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) < len(HEADER) and HEADER.startswith(data):
        return _result(path, (), len(data), cut=True)
    if not data.startswith(MAGIC):
        raise UserError(f"{path}: is not a record file (it does not start with {MAGIC!r})")
    if not data.startswith(HEADER):
        (version,) = struct.unpack_from("<I", data, len(MAGIC))
        raise UserError(
            f"{path}: has schema version {version}, this program reads {SCHEMA_VERSION}; "
            "read it with the version of quartet that wrote it"
        )
    records: list[Record] = []
    offset = len(HEADER)
    while (payload := _payload_at(path, data, offset)) is not None:
        where = f"{path}: frame {len(records)} at byte {offset}"
        records.append(from_wire(_unpack(payload, where), where))
        offset += FRAME.size + len(payload)
    return _result(path, tuple(records), len(data) - offset, cut=offset < len(data))


def _payload_at(path: str | os.PathLike[str], data: bytes, offset: int) -> bytes | None:
    """The payload of the frame at `offset`; None at the end and for a cut or damaged last frame."""
    rest = len(data) - offset
    if rest < FRAME.size:
        return None
    length, crc = FRAME.unpack_from(data, offset)
    payload = data[offset + FRAME.size : offset + FRAME.size + length]
    if length and len(payload) == length and zlib.crc32(payload) == crc:
        return payload
    # A machine that lost power may leave a tail of zeros.
    if not any(data[offset:]):
        return None
    if FRAME.size + length >= rest and not _holds_more_than_one(data[offset + FRAME.size :]):
        return None
    raise UserError(
        f"{path}: damaged at byte {offset} (checksum does not match) with records after it; "
        f"restore a copy, or keep the records before the damage: truncate -s {offset} FILE"
    )


def _holds_more_than_one(tail: bytes) -> bool:
    """Whether the payload ends before the file: then the length is wrong, and nothing was cut."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(tail)
    try:
        unpacker.skip()
    except msgpack.OutOfData:
        return False
    except (ValueError, msgpack.UnpackException):
        return True
    return bool(unpacker.tell() < len(tail))


def _unpack(payload: bytes, where: str) -> Any:
    try:
        return msgpack.unpackb(payload, unicode_errors="surrogatepass", strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise UserError(f"{where}: is not msgpack: {error}") from error


def _result(
    path: str | os.PathLike[str], records: tuple[Record, ...], dropped: int, *, cut: bool
) -> ReadResult:
    warning = None
    if cut:
        warning = f"{path}: cut off after {len(records)} whole records, {dropped} bytes dropped"
    return ReadResult(records=records, dropped_bytes=dropped, warning=warning)
