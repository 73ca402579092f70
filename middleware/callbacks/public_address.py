"""The way to somebody else's server: to which addresses it may lead, and how long all of it may take."""

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore

#: IPv6 addresses that stand for the IPv4 address in their last bits, by a translator on the way.
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
#: Bytes given to the kernel between two looks at the time.
PIECE = 16_384
#: What an address may be instead of public, the plainest word first.
KINDS = ("unspecified", "loopback", "link_local", "multicast", "private", "reserved")


class Refused(httpcore.ConnectError):
    """The way leads to where it must not."""


def address_class(address: str) -> str | None:
    """What an IP address is instead of public, as `loopback`; None: it is public."""
    found = _meant(ipaddress.ip_address(address))
    for word in KINDS:
        if getattr(found, f"is_{word}"):
            return word.replace("_", "-")
    return None if found.is_global else "not public"


def _meant(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


class PublicBackend(httpcore.NetworkBackend):
    """Connects to public addresses only, or to any (`private`), and lets nothing go on past `deadline` (monotonic).

    The name is looked up once, and the connection goes to an address that was looked at: a name that means something
    else a moment later leads nowhere else. Raises httpcore's errors; Refused when no address is left.
    """

    def __init__(self, deadline: float, *, private: bool) -> None:
        self._deadline = deadline
        self._private = private
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Try the host's addresses in turn."""
        failure: Exception = Refused(f"the host {host} has no address")
        for address in self._addresses(host, port):
            try:
                stream = self._plain.connect_tcp(
                    address, port, left(self._deadline, timeout), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return DeadlineStream(stream, self._deadline)
        raise failure

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the host {host} is not found: {error}") from error
        addresses = list(dict.fromkeys(str(place[4][0]) for place in found))
        allowed = [address for address in addresses if self._private or address_class(address) is None]
        if addresses and not allowed:
            raise Refused(
                f"{host} is at {addresses[0]}, a {address_class(addresses[0])} address; webhooks go to such only with "
                "CALLBOARD_WEBHOOK_PRIVATE=on where the workers run"
            )
        return allowed


class DeadlineStream(httpcore.NetworkStream):
    """A connection that ends at the deadline, however little comes or goes at a time."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What has come."""
        return self._stream.read(max_bytes, left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All of it, piece by piece."""
        for start in range(0, len(buffer), PIECE):
            self._stream.write(buffer[start : start + PIECE], left(self._deadline, timeout))

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The same, encrypted."""
        return DeadlineStream(
            self._stream.start_tls(ssl_context, server_hostname, left(self._deadline, timeout)),
            self._deadline,
        )

    def get_extra_info(self, info: str) -> Any:
        """As the connection has it."""
        return self._stream.get_extra_info(info)


def left(deadline: float, timeout: float | None) -> float:
    """Seconds that the next step may take; raises httpcore.ReadTimeout when none are left."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout
    return seconds if timeout is None else min(seconds, timeout)
