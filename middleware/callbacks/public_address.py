"""Connects to public addresses only, and within a deadline, because users choose the URLs of webhooks."""

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore

#: IPv6 addresses that NAT64 translates to the IPv4 address in their last 32 bits.
NAT64 = ipaddress.ip_network("64:ff9b::/96")
#: Private addresses that `ipaddress` calls public: site-local ones, and the IETF protocol assignments, most of which
#: Python 3.11 does not know.
NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("fec0::/10", "192.0.0.0/24")))
#: Bytes that are sent between two checks of the deadline.
WRITE_BYTES = 16_384


class NotPublic(httpcore.ConnectError):
    """None of the host's addresses is public."""


def is_public(text: str) -> bool:
    """Return whether an IP address is public."""
    found = ipaddress.ip_address(text)
    if isinstance(found, ipaddress.IPv6Address):  # it may contain an IPv4 address
        if found in NAT64:
            found = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        else:
            found = found.ipv4_mapped or found.sixtofour or found
    is_local = any(found in network for network in NOT_PUBLIC)
    return found.is_global and not (is_local or found.is_multicast or found.is_reserved)


class PublicBackend(httpcore.NetworkBackend):
    """Connects to public addresses only, or to any (`private`). Every operation fails after `deadline` (monotonic).

    A name is resolved once, and the connection uses an address that was checked, so DNS rebinding can't bypass the
    check. Raises httpcore's errors.
    """

    def __init__(self, deadline: float, *, private: bool) -> None:
        self._deadline = deadline
        self._private = private
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """Connect to the first of the host's allowed addresses that answers. Raises NotPublic if none is allowed."""
        failure: Exception = NotPublic(f"the host {host} has no address")
        for address in self._addresses(host, port):
            try:
                stream = self._backend.connect_tcp(
                    address, port, time_left(self._deadline, timeout), local_address, socket_options
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
        allowed = [address for address in addresses if self._private or is_public(address)]
        if addresses and not allowed:
            # The text does not contain the address: the tenant sees it, and may have named a host of this network.
            raise NotPublic(
                f"{host} has no public address; webhooks to private ones need CALLBOARD_WEBHOOK_PRIVATE=on where the "
                "workers run"
            )
        return allowed


class DeadlineStream(httpcore.NetworkStream):
    """A connection whose operations fail after the deadline, even if bytes still arrive slowly."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return the next bytes that arrive, at most `max_bytes`."""
        return self._stream.read(max_bytes, time_left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of the buffer, piece by piece."""
        for start in range(0, len(buffer), WRITE_BYTES):
            self._stream.write(buffer[start : start + WRITE_BYTES], time_left(self._deadline, timeout))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Return the connection with TLS."""
        timeout = time_left(self._deadline, timeout)
        return DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, timeout), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """Return the underlying connection's info."""
        return self._stream.get_extra_info(info)


def time_left(deadline: float, timeout: float | None) -> float:
    """Return the seconds that the next step may take; raises httpcore.ReadTimeout if none are left."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout
    return seconds if timeout is None else min(seconds, timeout)
