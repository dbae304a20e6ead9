"""Where the ranks of one copy meet: a store in rank 0's process, on an address of our choice.

PyTorch's own store listens on every address of the machine, and on a port that was free a moment
ago. Here rank 0 binds the socket itself and hands it over, so that the address is the one meant and
nobody can take the port in between.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

from actors.address import own_address

HOST = "QUARTET_HOST_IP"
"""Environment variable: the address that ranks meet at. 127.0.0.1 where all are on one machine; by
default the one that other machines reach this one at."""
TIMEOUT = timedelta(minutes=5)


def listen() -> socket.socket:
    """A listening socket of rank 0; `getsockname` says what to tell the others."""
    host = os.environ.get(HOST) or own_address()
    return socket.create_server((host, 0))


def store(
    host: str, port: int, rank: int, world_size: int, listener: socket.socket | None = None
) -> Any:
    """The store that all ranks share; rank 0 brings the `listener` that the others connect to."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(
        host,
        port,
        world_size,
        is_master=rank == 0,
        timeout=TIMEOUT,
        wait_for_workers=False,
        # The store closes it with itself.
        master_listen_fd=None if listener is None else listener.detach(),
    )


def join(
    backend: str, host: str, port: int, rank: int, world_size: int, listener: socket.socket | None
) -> None:
    """Make this process one of the ranks, unless it has a group already, which is then used: a
    process that hosts several copies has one.
    """
    from torch import distributed

    # DeepSpeed reads them, too.
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK="0",
        WORLD_SIZE=str(world_size),
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )
    if not distributed.is_initialized():
        group = store(host, port, rank, world_size, listener)
        distributed.init_process_group(backend, store=group, rank=rank, world_size=world_size)
