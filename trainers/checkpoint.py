"""Checkpoint folders: written whole or not at all, with a manifest of every file in them.

    checkpoints/
      round_000003/             appears under this name when every byte of it is on the disk
        manifest.json           path -> size and crc32 of every other file; written last
        ...

A folder is filled under another name beside its place, every file is synced, and then it is
renamed. So a kill at any moment, or a full disk, leaves the older checkpoints as they were, and a
folder called `round_000003` that is not whole was damaged later: `verify` names what it lacks.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

from trainers.data.errors import UserError

CHECKPOINTS = "checkpoints"
"""The folder in a run's folder."""
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
"""The name under which a checkpoint is filled, and under which an old one is taken away."""
_CHUNK = 2**22
_REMEDY = "restore it from a copy, or remove the folder to go on from an earlier checkpoint"


def write(root: Path, number: int, fill: Callable[[Path], None]) -> Path:
    """Make the checkpoint of round `number` under `root`; `fill` writes into the folder it gets.

    Raises:
        OSError: a file could not be written, most often for lack of room; nothing is left of it.
    """
    root.mkdir(parents=True, exist_ok=True)
    unfinished, target = root / UNFINISHED, folder(root, number)
    for leftover in root.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)
    try:
        unfinished.mkdir()
        fill(unfinished)
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        listed = {}
        for path in files:
            listed[path.relative_to(unfinished).as_posix()] = {
                "bytes": path.stat().st_size,
                "crc32": crc32(path),
            }
        manifest = {"schema_version": SCHEMA_VERSION, "round": number, "files": listed}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in (*files, unfinished / MANIFEST):
            sync(path)
        for path in (*(p for p in unfinished.rglob("*") if p.is_dir()), unfinished):
            sync(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    remove(root, number)
    unfinished.rename(target)
    sync(root)
    return target


def verify(checkpoint: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        UserError: one is missing, or has other bytes than were written; names it.
    """
    there = {
        path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()
    }
    for name, (expected, checksum) in _listed(checkpoint / MANIFEST).items():
        path = checkpoint / name
        if name not in there:
            raise UserError(f"{path}: the checkpoint lacks this file; {_REMEDY}")
        size = path.stat().st_size
        if size != expected:
            raise UserError(f"{path}: has {size} bytes, not {expected!r}; {_REMEDY}")
        if crc32(path) != checksum:
            raise UserError(f"{path}: damaged, its checksum does not match; {_REMEDY}")


def _listed(manifest: Path) -> dict[str, tuple[int, int]]:
    """Size and checksum of every file that a manifest lists."""
    try:
        values = json.loads(manifest.read_text())
        version, files = values["schema_version"], values["files"]
        listed = {name: (entry["bytes"], entry["crc32"]) for name, entry in files.items()}
        if not all(name.isprintable() for name in listed):
            raise ValueError("a name that no file of ours has")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{manifest}: missing or damaged; {_REMEDY}") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{manifest}: has schema version {version!r}, this program reads {SCHEMA_VERSION}; "
            "go on with the version of quartet that wrote it"
        )
    return listed


def rounds(root: Path) -> list[int]:
    """The rounds of which there is a checkpoint, in order."""
    found = [path.name.removeprefix("round_") for path in root.glob("round_*") if path.is_dir()]
    return sorted(int(name) for name in found if name.isdigit())


def folder(root: Path, number: int) -> Path:
    """Where the checkpoint of round `number` is."""
    return root / f"round_{number:06d}"


def superseded(numbers: Collection[int], *, keep: int, best: int | None) -> list[int]:
    """The rounds whose checkpoints can go: all but the last `keep` and the best one."""
    kept = {*sorted(numbers)[-keep:], best}
    return sorted(number for number in numbers if number not in kept)


def remove(root: Path, number: int) -> None:
    """Remove a checkpoint, if it is there. Half of one is never under its name."""
    checkpoint = folder(root, number)
    if checkpoint.is_dir():
        away = root / f"{UNFINISHED}-{number}"
        shutil.rmtree(away, ignore_errors=True)
        checkpoint.rename(away)
        shutil.rmtree(away)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crc32(path: Path) -> int:
    """Of the file's bytes."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
