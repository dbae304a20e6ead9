"""Where other processes reach this one."""

from __future__ import annotations

import socket

ELSEWHERE = ("192.0.2.1", 9)
"""An address reserved for documentation: asking for the way there sends nothing."""


def own_address() -> str:
    """This machine's address as other machines see it.

    Its name will not do: many systems resolve that to a loopback address, on which the ranks of
    other nodes wait for ever. Without any network it is the loopback address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ELSEWHERE)
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
