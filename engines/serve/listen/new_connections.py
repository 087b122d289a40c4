"""Stop the system from making connections to a listening socket, before it is closed."""

from __future__ import annotations

import ctypes
import socket
import struct

__all__ = ["ignore_new_connections"]

SO_ATTACH_FILTER = 26  # of Linux; the module socket has no name for it
#: A classic BPF program of (code, jump if true, jump if false, operand), as in 'tcpdump -dd': it sees the TCP header.
DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x45, 0, 1, 0x02),  # SYN?
    (0x06, 0, 0, 0),  # yes: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # no: keep
)


def ignore_new_connections(listening: socket.socket) -> bool:
    """Let the system drop requests for new connections; those under way are made; return False if it cannot.

    Closing a listening socket resets the connections that were made but not accepted yet, requests that they sent
    included. A client whose first packet is dropped sends it again after a second, and is then refused.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("@HBBI", *row) for row in DROP_SYN))
    described = struct.pack("@HP", len(DROP_SYN), ctypes.addressof(program))
    try:
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)
    except OSError:
        return False
    return True
