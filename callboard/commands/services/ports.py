"""Free TCP ports of this machine."""

import random
import socket

# Below the range of ports for outgoing connections, above the ports of well-known services.
FIRST, LAST = 16_000, 30_000
#: Ports that this process has already got: it may take seconds until something listens on them.
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Return ports without a listener on 127.0.0.1, never the same port twice in one process. They are random, so that
    two processes get different ones.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(FIRST, LAST)
        if port not in _given and _is_free(port):
            _given.add(port)
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
