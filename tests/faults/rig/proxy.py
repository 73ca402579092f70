"""A proxy before a server: it cuts connections when the test asks for it, or when certain bytes go by."""

import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

#: Called with the bytes that a client sends; says what to do with them and their connection.
#: "pass": send them on; "before": cut without sending them; "after": send them on, then cut both ends
#: as soon as the server has answered.
Verdict = Callable[[bytes], str]
Address = tuple[str, int] | str


class Proxy:
    """Listens on a free port (or on a Unix socket), and passes everything on to `target` until the test cuts it."""

    def __init__(self, target: Address, at: str | None = None) -> None:
        self.target = target
        self.judge: Verdict = lambda _: "pass"
        self.cuts = 0
        self.refusing = False
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        if at is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(at)
            self._listener.listen()
        self._closing = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where clients connect."""
        return int(self._listener.getsockname()[1])

    def __len__(self) -> int:
        """How many connections are open."""
        with self._lock:
            return len(self._pairs)

    def cut(self) -> int:
        """Cut every connection as it is, without a word; how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            _close(pair)
        self.cuts += len(pairs)
        return len(pairs)

    def close(self) -> None:
        """Listen no more, and cut everything."""
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(300)
        self.cut()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.refusing:
                    raise ConnectionRefusedError
                server = _connect(self.target)
            except OSError:
                client.close()
                continue
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        last = False
        with selectors.DefaultSelector() as ready, suppress(OSError, ValueError):
            ready.register(client, selectors.EVENT_READ)
            ready.register(server, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not data or (last and key.fileobj is server):
                        return self._end(client, server, cut=bool(data))
                    if key.fileobj is server:
                        client.sendall(data)
                        continue
                    verdict = self.judge(data)
                    if verdict == "before":
                        return self._end(client, server, cut=True)
                    last = last or verdict == "after"
                    server.sendall(data)
        return self._end(client, server, cut=False)

    def _end(self, client: socket.socket, server: socket.socket, *, cut: bool) -> None:
        with self._lock:
            self._pairs.discard((client, server))
        self.cuts += cut
        _close((client, server))


def _connect(target: Address) -> socket.socket:
    if isinstance(target, tuple):
        server = socket.create_connection(target, timeout=10)
        server.settimeout(None)  # it may take its time later
        return server
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(target)
    except OSError:
        server.close()
        raise
    return server


def _close(pair: tuple[socket.socket, socket.socket]) -> None:
    for end in pair:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@contextmanager
def proxy(target: Address, at: str | None = None) -> Iterator[Proxy]:
    """A proxy until the end of the block."""
    made = Proxy(target, at)
    try:
        yield made
    finally:
        made.close()
