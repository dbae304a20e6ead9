"""Whether a model folder or a data file is still the one that a run was made of."""

from __future__ import annotations

import zlib
from pathlib import Path

ENDS = 2**20
"""Bytes read at either end of a file: a model of 100 GB is told from another one at once."""


def fingerprint(path: str | Path) -> str:
    """Of a file, or of all safetensors files of a folder: their names, sizes, and first and last
    bytes. Weights that were trained anew, or a file that was written again, have another one.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    value = 0
    for file in files:
        size = file.stat().st_size
        value = zlib.crc32(f"{file.name} {size}".encode(), value)
        with file.open("rb") as handle:
            value = zlib.crc32(handle.read(ENDS), value)
            handle.seek(max(0, size - ENDS))
            value = zlib.crc32(handle.read(), value)
    return f"{value:08x}"
