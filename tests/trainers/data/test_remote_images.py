"""Images from the network: a real server, and everything that must not be fetched."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from trainers.data import remote_images
from trainers.data.datasets import SampleFile, load_samples
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.remote_images import RemoteImages, is_public
from trainers.data.tally import Tally


class Server(ThreadingHTTPServer):
    asked: list[str]


@pytest.fixture
def server() -> Iterator[Server]:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 8, 7)).save(buffer, "PNG")
    png = buffer.getvalue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.path)
            name = self.path.strip("/").partition("?")[0]
            if name.startswith("to-"):
                self.send_response(302)
                targets = {
                    "to-image": "/cat.png",
                    "to-itself": "/to-itself",
                    "to-local": "http://127.0.0.2/cat.png",
                    "to-file": "file:///etc/hostname",
                }
                self.send_header("Location", targets[name])
                self.end_headers()
                return
            body = {"cat.png": png, "text": b"hello", "large": png + bytes(5000)}.get(name)
            self.send_response(404 if body is None and name != "short" else 200)
            body = body or png
            self.send_header("Content-Length", str(len(body) + (100 if name == "short" else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    # Looked at that often, a shutdown takes no half second.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def images(tmp_path: Path) -> RemoteImages:
    """The test's own server counts as public, and no other address of this machine."""
    store = ImageStore(tmp_path / "images")
    return RemoteImages(store, is_public=lambda address: address == "127.0.0.1")


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{path}"


def test_fetched_once_and_kept_in_the_store(server, images):
    image = images.put(url(server, "cat.png?size=4"))
    assert images.store.get(image).getpixel((0, 0)) == (9, 8, 7)
    again = RemoteImages(images.store, is_public=images.is_public)
    assert again.put(url(server, "cat.png?size=4")) == image
    assert server.asked == ["/cat.png?size=4"]
    images.store.path(image).unlink()
    assert again.put(url(server, "cat.png?size=4")) == image and len(server.asked) == 2
    assert images.put(url(server, "to-image")) == image, "a redirect is followed"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none", "status 404"),
        ("text", "not an image that can be read"),
        ("to-itself", "more than 3 redirects"),
        ("to-local", "127.0.0.2 is 127.0.0.2, an address of this machine"),
        ("to-file", "only http and https addresses are fetched"),
        ("large", "more than 1000 bytes"),
        ("short", "IncompleteRead|ended before the image did"),
    ],
)
def test_what_a_server_must_not_do(path, reason, server, images, monkeypatch):
    monkeypatch.setattr(remote_images, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match=reason):
        images.put(url(server, path))


def test_this_machine_and_private_networks_are_never_asked(server, tmp_path):
    images = RemoteImages(ImageStore(tmp_path / "images"))
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(UserError, match="an address of this machine or of a private network"):
            images.put(f"http://{host}:{server.server_address[1]}/cat.png")
    assert server.asked == []
    for address in [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.5.5",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
    ]:
        assert not is_public(address), address
    assert is_public("8.8.8.8") and is_public("2001:4860:4860::8888")


@pytest.mark.parametrize(
    "address",
    [
        "ftp://a.org/x.png",
        "file:///etc/passwd",
        "http://",
        "http://user:secret@a.org/x.png",
        "http://a.org:99999/x.png",
        "http://a.org/x y.png",
        "http://a.org/\r\nHost: b",
        "http://[::1/x",
        "gopher://a.org",
    ],
)
def test_addresses_that_are_refused_unasked(address, images):
    with pytest.raises(UserError) as caught:
        images.check(address)
    assert "secret" not in str(caught.value)


def test_off_by_default_and_on_if_asked(server, tmp_path, monkeypatch):
    rows = [{"images": [url(server, "cat.png")], "prompt": "What?"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = ImageStore(tmp_path / "images")
    with pytest.raises(UserError, match="is a URL; download it and give its path, or set"):
        load_samples(path, store)
    assert server.asked == []
    file = SampleFile(path, store, allow_urls=True)
    (item,) = file.stream(Tally())
    assert "private network" in item.reason, "allowed, but not from this machine"
    assert file.images.remote is not None
    monkeypatch.setattr(file.images.remote, "is_public", lambda _: True)
    (item,) = file.stream(Tally())
    assert store.get(item.images[0]).size == (4, 4)
