"""Images from the network, for those who ask for it (`data.allow_urls`).

Only http and https, only public addresses, at most `MAX_BYTES` in `TIMEOUT` seconds, and at most
`MAX_REDIRECTS` redirects, each checked like the first address. The connection goes to the very
address that was checked, so that a name cannot stand for another one the second time. What was
fetched stays in the image store, and its URL is remembered there.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from trainers.data.errors import UserError

if TYPE_CHECKING:
    from trainers.data.images import ImageStore

MAX_BYTES = 2**25
MAX_REDIRECTS = 3
TIMEOUT = 20.0
"""Seconds for one image, redirects included."""
PIECE = 2**16
REDIRECTS = (301, 302, 303, 307, 308)
FOLDER = "urls"
"""Of the image store: a file for each URL that was fetched, named by its hash."""
IsPublic = Callable[[str], bool]


def is_url(reference: str) -> bool:
    """Whether an image reference is an address and not a path."""
    return "://" in reference or reference.startswith("data:")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open network: not this machine, not a private network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_global and not found.is_multicast


class RemoteImages:
    """Fetches images into a store.

    Args:
        is_public: which addresses may be asked; a test's own server is not one of them.
    """

    def __init__(self, store: ImageStore, *, is_public: IsPublic = is_public) -> None:
        self.store, self.is_public = store, is_public

    def check(self, url: str) -> None:
        """Raises `UserError` for what is never fetched; asks nobody."""
        self._parts(url)

    def put(self, url: str) -> str:
        """The hash under which the store has the image of this URL."""
        note = self.store.root / FOLDER / hashlib.sha256(url.encode()).hexdigest()
        if note.is_file():
            known = note.read_text(errors="replace").strip()
            try:
                self.store.read_bytes(known)
            except UserError:
                pass  # fetched again, and mended by that
            else:
                return known
        found = self.store.put_bytes(self._fetch(url), f"image {_short(url)}")
        try:
            note.parent.mkdir(exist_ok=True)
            note.write_text(found)
        except OSError as error:
            raise UserError(f"{note}: cannot be written: {error.strerror}") from error
        return found

    def _fetch(self, url: str) -> bytes:
        until = time.monotonic() + TIMEOUT
        target = url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                connection, path = self._connection(target, until)
                try:
                    headers = {"User-Agent": "quartet", "Accept": "image/*"}
                    connection.request("GET", path, headers=headers)
                    response = connection.getresponse()
                    if response.status in REDIRECTS and response.headers.get("Location"):
                        target = urljoin(target, response.headers["Location"])
                        continue
                    if response.status != http.client.OK:
                        raise UserError(f"image {_short(url)}: status {response.status}")
                    return _read(response, url, until)
                finally:
                    connection.close()
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                reason = "too slow" if isinstance(error, TimeoutError) else str(error)
                raise UserError(f"image {_short(url)}: cannot be fetched: {reason}") from error
        raise UserError(f"image {_short(url)}: more than {MAX_REDIRECTS} redirects")

    def _connection(self, url: str, until: float) -> tuple[http.client.HTTPConnection, str]:
        """A connection to the address that was checked, and what to ask it for."""
        parts = self._parts(url)
        assert parts.hostname is not None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        addresses = [str(item[4][0]) for item in found]
        if bad := [address for address in addresses if not self.is_public(address)]:
            raise UserError(
                f"image {_short(url)}: {parts.hostname} is {bad[0]}, an address of this machine or "
                "of a private network; such images are not fetched"
            )
        timeout = max(0.01, until - time.monotonic())
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                parts.hostname, port, timeout=timeout, context=context
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout)
        # http.client's own hook for tunnels; the name stays for the certificate and the header.
        connection._create_connection = (  # type: ignore[attr-defined]
            lambda _, seconds, *rest: socket.create_connection((addresses[0], port), seconds, *rest)
        )
        query = f"?{parts.query}" if parts.query else ""
        return connection, (parts.path or "/") + query

    def _parts(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            port_is_fine = parts.port is None or parts.port > 0
        except ValueError as error:
            raise UserError(f"image {_short(url)}: not a URL ({error})") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
            raise UserError(f"image {_short(url)}: only http and https addresses are fetched")
        if parts.username is not None or parts.password is not None:
            raise UserError(f"image of {parts.hostname}: a URL with a password in it is not used")
        if any(ord(letter) <= 32 or ord(letter) > 126 for letter in url):
            raise UserError(f"image {_short(url)}: a URL has no spaces and no letters beyond ASCII")
        return parts


def _read(response: http.client.HTTPResponse, url: str, until: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := response.read1(PIECE):
        size += len(piece)
        pieces.append(piece)
        if size > MAX_BYTES:
            raise UserError(f"image {_short(url)}: more than {MAX_BYTES} bytes; shrink it")
        if time.monotonic() > until:
            raise UserError(f"image {_short(url)}: not here after {TIMEOUT:g} s")
    if response.length:
        raise UserError(f"image {_short(url)}: the connection ended before the image did")
    return b"".join(pieces)


def _short(url: str) -> str:
    return repr(url if len(url) <= 80 else url[:77] + "...")
