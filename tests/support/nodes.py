"""A private RabbitMQ node with what only tests need: `rabbitmqctl`, its pid, and the management plugin."""

import subprocess
from pathlib import Path
from typing import Self

from callboard.commands.services import rabbitmq
from callboard.commands.services.ports import free_ports

#: What a node logs when its boot is over.
BOOTED = b"Server startup complete"


class Node(rabbitmq.Node):
    """A node that a test can ask and watch. `management` enables that plugin, on a port of its own."""

    def __init__(self, folder: Path, *, management: bool = False) -> None:
        super().__init__(folder)
        self._management_port = free_ports(1)[0] if management else None
        self._logged_before = 0

    @property
    def management_url(self) -> str:
        """The address of the management plugin's HTTP API, without user and password."""
        return f"http://127.0.0.1:{self._management_port}/api"

    def begin(self) -> Self:
        self._logged_before = self.log.stat().st_size if self.log.exists() else 0
        return super().begin()

    def configure(self) -> None:
        super().configure()
        if self._management_port is not None:
            (self.files.folder / "plugins").write_text("[rabbitmq_management].\n", encoding="ascii")
            with (self.files.folder / "rabbitmq.conf").open("a", encoding="ascii") as config:
                config.write("management.tcp.ip = 127.0.0.1\n")
                config.write(f"management.tcp.port = {self._management_port}\n")

    def ready(self) -> bool:
        # The last boot step is done after the node listens: until then plugins do not, and a list of queues is empty.
        return super().ready() and BOOTED in self.log.read_bytes()[self._logged_before :]

    def ctl(self, *arguments: str, program: str = "rabbitmqctl", timeout: float = 300) -> str:
        """Run `rabbitmqctl` or one of its kin, which takes about a second; return what it prints."""
        command = [str((rabbitmq.scripts() or Path()) / program), "--quiet", *arguments]
        done = subprocess.run(
            command, env=self.files.environment(), capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout
