"""The image store of a run: every image once on disk, named by the SHA-256 of its file.

A drawn image is stored as a PNG, an image file as the bytes it came with (a photo stays a JPEG, a
fifth of its PNG). `sha256sum` therefore checks a store, and `get` does so for each file that it
reads. All that leaves the store is upright RGB.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.data.errors import UserError
from trainers.data.image_codec import SUFFIXES, check_size, decode, encode_png, to_rgb

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from PIL import Image

MAX_PIXELS = 50_000_000


class ImageStore:
    """A folder of images by content hash, shared by any number of writing and reading processes.

    `max_pixels` refuses larger images before they are decoded; `cache_bytes` bounds the decoded
    images that `get` keeps. A store can be sent to another process, which starts its own cache.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        max_pixels: int = MAX_PIXELS,
        cache_bytes: int = 64 * 2**20,
    ) -> None:
        # Absolute, because the process that the store is sent to may run in another folder.
        self.root = Path(root).absolute()
        self.max_pixels = max_pixels
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[str, Image.Image] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.root}: cannot hold images: {error.strerror}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("root", "max_pixels", "cache_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ImageStore.__init__(self, **state)

    def put_image(self, image: Image.Image) -> str:
        """Stores an image in memory as a PNG of its `to_rgb` and returns its hash."""
        check_size(image, "an image in memory", self.max_pixels)
        return self._store(encode_png(to_rgb(image)), ".png")

    def put_file(self, path: str | os.PathLike[str]) -> str:
        """Decodes the file fully, stores its bytes and returns their hash."""
        try:
            if not Path(path).is_file():
                raise UserError(f"{path}: no such image file")
            # Even 16 bits in each of four channels stay below this, with room for metadata.
            if Path(path).stat().st_size > 8 * self.max_pixels + 2**24:
                raise UserError(f"{path}: file too large for {self.max_pixels} pixels; shrink it")
            data = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        return self.put_bytes(data, str(path))

    def put_bytes(self, data: bytes, name: str) -> str:
        """Like `put_file` for the bytes of an image file; `name` stands in messages."""
        _, suffix = decode(data, name, self.max_pixels)
        return self._store(data, suffix)

    def get(self, image_hash: str) -> Image.Image:
        """The image as upright RGB: a copy, so that changing it changes nothing here."""
        with self._lock:
            if image_hash in self._cache:
                self._cache.move_to_end(image_hash)
                return self._cache[image_hash].copy()
        data = self.read_bytes(image_hash)
        image, _ = decode(data, f"{self.root}: image {image_hash}", self.max_pixels)
        with self._lock:
            if image_hash not in self._cache:
                self._cache[image_hash] = image
                self._cached_bytes += _num_bytes(image)
            while self._cached_bytes > self.cache_bytes:
                self._cached_bytes -= _num_bytes(self._cache.popitem(last=False)[1])
        return image.copy()

    def read_bytes(self, image_hash: str) -> bytes:
        """The stored file, after a check that its content still has this hash."""
        for suffix in self._suffixes(image_hash):
            path = self.root / f"{image_hash}{suffix}"
            try:
                data = path.read_bytes()
                break
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        else:
            raise self._missing(image_hash)
        if hashlib.sha256(data).hexdigest() != image_hash:
            raise UserError(f"{path}: damaged in the image store; restore it from a copy")
        return data

    def path(self, image_hash: str) -> Path:
        """Where the store keeps the file of this hash; its suffix says the format."""
        for suffix in self._suffixes(image_hash):
            path = self.root / f"{image_hash}{suffix}"
            if path.exists():
                return path
        raise self._missing(image_hash)

    def _suffixes(self, image_hash: str) -> Iterable[str]:
        # A hash may come from a file of the user; it must not become a path out of the store.
        return SUFFIXES.values() if len(image_hash) == 64 and image_hash.isalnum() else ()

    def _missing(self, image_hash: str) -> UserError:
        return UserError(f"image {image_hash!r} is not in {self.root}: keep images beside records")

    def _store(self, data: bytes, suffix: str) -> str:
        image_hash = hashlib.sha256(data).hexdigest()
        path = self.root / f"{image_hash}{suffix}"
        try:
            # A wrong size is what a machine that lost power leaves; written again, it is mended.
            if not path.exists() or path.stat().st_size != len(data):
                _write_atomically(path, data)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        return image_hash


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _num_bytes(image: Image.Image) -> int:
    return 3 * image.width * image.height
