"""Free TCP ports of this machine."""

import random
import socket

# Below the range from which systems take ports for outgoing connections, above the well-known services'.
FIRST, LAST = 16_000, 30_000
#: Those that this process was given already: who has one may take seconds until it listens there.
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens at 127.0.0.1 now, each other than all that this process was given before. They are
    random, so that two processes get others.
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
