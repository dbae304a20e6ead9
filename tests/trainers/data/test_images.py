"""The image store: content addresses, conversions, refusals, many processes."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from trainers.data.errors import UserError
from trainers.data.image_codec import encode_png, to_rgb
from trainers.data.images import ImageStore


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", max_pixels=10_000)


def gradient(width: int = 8, height: int = 6) -> Image.Image:
    pixels = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3) * 7 % 256
    return Image.fromarray(pixels.astype(np.uint8))


def file_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()


def entries(store: ImageStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.binary(min_size=243, max_size=243))
def test_png_keeps_every_pixel(width: int, height: int, noise: bytes) -> None:
    image = Image.frombytes("RGB", (width, height), noise[: 3 * width * height])
    with Image.open(io.BytesIO(encode_png(image))) as read:
        assert same(read.convert("RGB"), image)


def test_put_image_is_stored_once_under_the_hash_of_its_file(store: ImageStore) -> None:
    image_hash = store.put_image(gradient())
    assert store.put_image(gradient()) == image_hash
    assert entries(store) == [f"{image_hash}.png"]
    assert hashlib.sha256(store.read_bytes(image_hash)).hexdigest() == image_hash
    assert same(store.get(image_hash), gradient())
    assert store.put_image(gradient(9)) != image_hash


def test_put_file_keeps_the_bytes_of_the_file(store: ImageStore, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpeg"
    photo.write_bytes(file_bytes(gradient(), "JPEG"))
    image_hash = store.put_file(photo)
    assert store.put_file(str(photo)) == image_hash
    assert store.path(image_hash).name == f"{image_hash}.jpg"
    assert store.read_bytes(image_hash) == photo.read_bytes()


def test_what_get_returns_may_be_changed(store: ImageStore) -> None:
    image_hash = store.put_image(gradient())
    for _ in range(2):
        image = store.get(image_hash)
        assert same(image, gradient())
        image.paste("black", (0, 0, 8, 6))


def test_cache_is_bounded_and_saves_reading(tmp_path: Path) -> None:
    # One 8x6 RGB image takes 144 bytes: a cache of 300 holds two.
    store = ImageStore(tmp_path, cache_bytes=300)
    hashes = [store.put_image(Image.new("RGB", (8, 6), (i, 0, 0))) for i in range(3)]
    for image_hash in hashes:
        store.get(image_hash)
        store.path(image_hash).unlink()
    with pytest.raises(UserError, match="is not in"):
        store.get(hashes[0])
    assert store.get(hashes[1]).getpixel((0, 0)) == (1, 0, 0)
    assert store.get(hashes[2]).getpixel((0, 0)) == (2, 0, 0)


@pytest.mark.parametrize("image_hash", ["0" * 64, "", "../../etc/passwd", "a" * 63 + "/"])
def test_missing_hash(store: ImageStore, image_hash: str) -> None:
    with pytest.raises(UserError, match="is not in"):
        store.get(image_hash)


def test_damaged_store_is_noticed_and_a_cut_file_is_mended(store: ImageStore) -> None:
    image_hash = store.put_image(gradient())
    path = store.path(image_hash)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"x")
    with pytest.raises(UserError, match="damaged in the image store"):
        store.get(image_hash)
    path.write_bytes(good[:10])
    assert store.put_image(gradient()) == image_hash
    assert path.read_bytes() == good


def test_exif_orientation_is_applied(store: ImageStore) -> None:
    # Orientation 6: the file's rows are the upright image's columns, read from the right.
    exif = Image.Exif()
    exif[0x0112] = 6
    image_hash = store.put_bytes(file_bytes(gradient(8, 6), exif=exif), "turned.png")
    upright = store.get(image_hash)
    assert same(upright, gradient(8, 6).transpose(Image.Transpose.ROTATE_270))
    assert upright.size == (6, 8)


def test_transparency_goes_over_white() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    # Half covered black over white: 255 * (1 - 51 / 255) = 204.
    assert to_rgb(Image.new("LA", (1, 1), (0, 51))).getpixel((0, 0)) == (204, 204, 204)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 1
    rgb = to_rgb(palette)
    assert rgb.getpixel((0, 0)) == (10, 20, 30)
    assert rgb.getpixel((1, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(store: ImageStore) -> None:
    # 65535 is white, and 32768 / 65535 * 255 = 127.5, which rounds to 128.
    grey = Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16))
    image = store.get(store.put_bytes(file_bytes(grey), "grey.png"))
    assert [image.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (1, 1), 1), 255),
        (Image.new("L", (1, 1), 77), 77),
        (Image.new("I", (1, 1), 77), 77),
        (Image.new("I", (1, 1), 25700), 100),
        (Image.new("F", (1, 1), 0.4), 102),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 155)), 100),
        (Image.new("F", (1, 1), float("nan")), 0),
    ],
)
def test_other_modes(image: Image.Image, expected: int) -> None:
    assert to_rgb(image).mode == "RGB"
    assert to_rgb(image).getpixel((0, 0)) == (expected,) * 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_formats(store: ImageStore, kind: str) -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    image = store.get(store.put_bytes(file_bytes(red, kind), "red"))
    assert image.size == (16, 16)
    assert np.asarray(ImageChops.difference(image, red)).max() < 8


def bomb(width: int, height: int) -> bytes:
    """A PNG of 60 bytes whose header claims any size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, data, b"IEND")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (bomb(200, 100), "200x100 pixels, allowed are 1 to 10000"),
        (bomb(10_000, 10_000), "10000x10000 pixels"),
        (bomb(100_000, 100_000), "more than 10000 pixels"),
        (bomb(50, 50), "damaged or cut off"),
        (file_bytes(gradient())[:-40], "damaged or cut off"),
        (file_bytes(gradient(64, 64), "JPEG")[:-200], "damaged or cut off"),
    ],
)
def test_bad_files_are_refused_by_name(
    store: ImageStore, tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        store.put_file(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert entries(store) == []


def test_missing_and_unreadable_files(store: ImageStore, tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path, tmp_path / "nul\0.png"):
        with pytest.raises(UserError, match="no such image file"):
            store.put_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        store.put_file(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="no such image file"):
        store.put_file(tmp_path / "pipe.png")


def test_enormous_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(UserError, match="file too large"):
        ImageStore(tmp_path / "images").put_file(path)


def test_images_in_memory_have_the_same_limit(store: ImageStore) -> None:
    for size in ((101, 100), (0, 5)):
        with pytest.raises(UserError, match="pixels"):
            store.put_image(Image.new("RGB", size))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 40),
)
def test_mutated_files_are_stored_or_refused(
    store: ImageStore, kind: str, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(file_bytes(gradient(16, 12), kind))
    for position, value in edits:
        data[position % min(len(data), 120)] = value
    try:
        image_hash = store.put_bytes(bytes(data[: len(data) - cut]), "mutated")
    except UserError:
        return
    assert store.get(image_hash).mode == "RGB"


def test_store_travels_to_another_process(store: ImageStore) -> None:
    image_hash = store.put_image(gradient())
    other = pickle.loads(pickle.dumps(store))
    assert (other.root, other.max_pixels) == (store.root, store.max_pixels)
    assert same(other.get(image_hash), gradient())


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot hold images"):
        ImageStore(tmp_path / "file")


def test_concurrent_writers_leave_whole_files_only(tmp_path: Path) -> None:
    program = (
        "import sys; from PIL import Image; from trainers.data.images import ImageStore\n"
        "store = ImageStore(sys.argv[1])\n"
        "for i in range(200):\n"
        "    image_hash = store.put_image(Image.new('RGB', (40, 40), (i, i, i)))\n"
        "    assert store.get(image_hash).getpixel((0, 0)) == (i, i, i)\n"
    )
    root = Path(__file__).parents[3]
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=root) for _ in range(3)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    store = ImageStore(tmp_path)
    names = entries(store)
    assert len(names) == 200
    for name in names:
        store.read_bytes(name.removesuffix(".png"))
