"""Free TCP ports of this machine."""

import random
import socket

# Below the range from which systems take ports for outgoing connections, above the well-known services'.
FIRST, LAST = 16_000, 30_000


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens at 127.0.0.1 now. They are random, so that two callers get others."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(FIRST, LAST)
        if port not in ports and _is_free(port):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
