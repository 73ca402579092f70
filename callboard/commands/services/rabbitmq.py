"""A private RabbitMQ node: the machine's RabbitMQ, with its own folder, ports, cookie and user.

The node listens only on 127.0.0.1, with a random password, and shares nothing with a RabbitMQ of the system. It also
has its own Erlang port mapper (epmd), so that no process remains when it stops.
"""

import socket
from pathlib import Path
from typing import Self
from urllib.parse import quote

from callboard.commands.services.child_process import NotStarted, Process
from callboard.commands.services.rabbitmq_files import NodeFolder
from callboard.commands.services.rabbitmq_programs import epmd, installed, scripts

__all__ = ["Node", "installed", "listens", "scripts"]

START_SECONDS = 120.0
EPMD_SECONDS = 60.0


class Node(Process):
    """A RabbitMQ node with its data in a folder, which it creates and keeps.

    Its messages, ports and password stay the same after a restart.
    """

    def __init__(self, folder: Path) -> None:
        self.files = NodeFolder.at(folder)
        super().__init__(["rabbitmq-server"], log=self.files.folder / "rabbitmq.log", cwd=self.files.folder)
        self._epmd: Process | None = None

    @property
    def url(self) -> str:
        """The AMQP URL of the node's own virtual host `/`."""
        return self.url_of("/")

    def url_of(self, vhost: str) -> str:
        """Return the AMQP URL of a virtual host."""
        server = f"callboard:{self.files.password}@127.0.0.1:{self.files.ports.amqp}"
        return f"amqp://{server}/{quote(vhost, safe='')}"

    def begin(self) -> Self:
        """Start it without waiting, so that the caller can start other services during the seconds of its boot.

        Raises NotStarted if RabbitMQ is not installed.
        """
        place, mapper = scripts(), epmd()
        if place is None or mapper is None:
            raise NotStarted("no RabbitMQ here; set AMQP_URL, or install rabbitmq-server with the system's packages")
        self.configure()
        self.env = self.files.environment()
        port = self.files.ports.epmd
        if not listens(port):
            command: list[str | Path] = [mapper, "-port", str(port), "-address", "127.0.0.1"]
            self._epmd = Process(command, log=self.log, env=self.env, cwd=self.cwd).start()
            self._epmd.wait_ready(lambda: listens(port), EPMD_SECONDS)
        self.command = [place / "rabbitmq-server"]
        return super().start()

    def configure(self) -> None:
        """Write the files for its start."""
        self.files.configure()

    def wait(self) -> Self:
        """Wait until it accepts connections. Raises NotStarted with the end of its log."""
        self.wait_ready(self.ready, START_SECONDS)
        return self

    def start(self) -> Self:
        """Start it and wait until it accepts connections. Raises NotStarted."""
        return self.begin().wait()

    def kill(self) -> int | None:
        """Send SIGKILL to its group, as a power cut would, and stop its port mapper; return its exit code."""
        code = super().kill()
        if self._epmd is not None:
            self._epmd.stop()
            self._epmd = None
        return code

    def ready(self) -> bool:
        """Return whether it accepts connections. The listener opens in the second last boot step."""
        return listens(self.files.ports.amqp)


def listens(port: int) -> bool:
    """Return whether a process listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
