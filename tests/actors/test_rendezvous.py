"""The ranks' meeting point: two stores of one process talk through a socket on loopback only."""

from __future__ import annotations

from pathlib import Path

from actors.rendezvous import listen, store


def listening(port: int) -> set[str]:
    """Addresses on which something listens at `port`, as the kernel writes them (state 0A)."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            host, number = address.split(":")
            if state == "0A" and int(number, 16) == port:
                found.add(host)
    return found


def test_ranks_meet_on_the_address_that_was_named(monkeypatch):
    monkeypatch.setenv("QUARTET_HOST_IP", "127.0.0.1")
    listener = listen()
    host, port = listener.getsockname()
    first = store(host, port, 0, 2, listener)
    second = store(host, port, 1, 2)
    second.set("key", "value")
    assert first.get("key") == b"value"
    assert listening(port) == {"0100007F"}, "127.0.0.1 in the kernel's byte order, and no other"
