"""Takes in what has come before a port is closed: connections that nobody has accepted, requests that nobody has read.

The kernel completes connections, and takes the requests that clients send on them, before the process looks; closing
the port or an idle connection then would throw away what a client knows to have been sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys

SO_ATTACH_FILTER = 26  # asm-generic/socket.h of Linux
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K with 0: keeps no byte of any packet


def complete_no_more(listener: socket.socket) -> None:
    """No connection to ``listener`` becomes established from here on; nothing happens elsewhere than on Linux.

    A filter on a listening socket sees only the packets of handshakes; whose are dropped tries again a second later.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(DROP_ALL)
    with contextlib.suppress(
        OSError
    ):  # of a sandbox without such filters, where a connection may still be lost
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program))
        )


async def taken_in() -> None:
    """Returns when the event loop has seen all that had come: a turn begins with timers, then looks at sockets."""
    for _ in range(5):  # a connection's bytes are read a turn after it was accepted
        await asyncio.sleep(0.01)
