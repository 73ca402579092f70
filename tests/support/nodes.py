"""A private RabbitMQ node with what only tests need: `rabbitmqctl`, its pid, and the management plugin."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from callboard.commands.services import rabbitmq
from callboard.commands.services.ports import free_ports
from callboard.commands.services.rabbitmq_files import NodeFolder
from callboard.commands.services.rabbitmq_programs import epmd
from tests.support.tls import LOCALHOST

#: What a node logs when its boot is over.
BOOTED = b"Server startup complete"
#: The plugins and libraries that a node of the tests has. Measured: it looks through all that lie in the folder as it
#: starts, which with those of a distribution takes a second of its 4.4 s of processor time.
PLUGINS = re.compile(r"(?!rabbitmq_)|rabbitmq_(prelaunch|management|management_agent|web_dispatch)-")
#: Those that none but the management plugin needs: without them a start takes 0.4 s less of 3.4.
OF_MANAGEMENT = re.compile(r"rabbitmq_[mw]|amqp10_client|amqp_client|base64url|cow|eetcd|gun|jose|prometheus|quantile")
#: What `erl_call` prints of expressions that raised nothing.
VALUE = re.compile(r"\{ok, (.*)\}", re.DOTALL)
#: What it says of a node that it can't reach, and how often that is tried. Nothing is evaluated then.
NOT_REACHED, CONNECTS = "failed to connect to node", 10


def evaluate(environment: Mapping[str, str], expressions: str) -> str:
    """The value of Erlang expressions in the node that the tools of RabbitMQ reach with this environment.

    A number or a list of lists of strings and numbers is written as in JSON. Measured: it takes 2 ms of processor time,
    and `rabbitmqctl eval` 600 ms.
    """
    mapper = epmd()
    program = shutil.which("erl_call") or (mapper and mapper.resolve().with_name("erl_call"))
    assert program, "erl_call is missing, which comes with Erlang"
    for _ in range(CONNECTS):  # seen once: a node that runs was not reached
        done = subprocess.run(
            [program, "-sname", environment.get("RABBITMQ_NODENAME", "rabbit"), "-e"],
            input=f"{expressions}.\n", env=dict(environment), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if NOT_REACHED not in done.stderr:
            break
    found = VALUE.fullmatch(done.stdout)
    assert found is not None, (expressions, done.stdout, done.stderr)
    return found[1]


class LeanFolder(NodeFolder):
    """A node's folder, with links to a few `PLUGINS` in place of those that are installed."""

    def configure(self) -> None:
        super().configure()
        links = self.folder / "links"
        links.mkdir(exist_ok=True)
        program = (rabbitmq.scripts() or Path()) / "rabbitmq-defaults"
        for plugin in program.resolve().parents[1].glob("plugins/*"):
            if PLUGINS.match(plugin.name) and not (links / plugin.name).is_symlink():
                (links / plugin.name).symlink_to(plugin)

    def environment(self) -> dict[str, str]:
        return super().environment() | {"RABBITMQ_PLUGINS_DIR": str(self.folder / "links")}


class Node(rabbitmq.Node):
    """A node that a test can ask and watch. `management` enables that plugin, on a port of its own, and `tls` makes the
    node listen at a port with the certificate `LOCALHOST`, too.
    """

    def __init__(self, folder: Path, *, management: bool = False, tls: bool = False) -> None:
        super().__init__(folder)
        self.tls_port = free_ports(1)[0] if tls else None
        self.files = LeanFolder(*self.files)
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
        if self.tls_port is not None:
            with (self.files.folder / "rabbitmq.conf").open("a", encoding="ascii") as config:
                config.write(f"listeners.ssl.default = 127.0.0.1:{self.tls_port}\n")
                config.writelines(f"ssl_options.{name}file = {LOCALHOST}\n" for name in ("cacert", "cert", "key"))
        if self._management_port is None:
            for link in (self.files.folder / "links").iterdir():
                if OF_MANAGEMENT.match(link.name):
                    link.unlink()
        else:
            (self.files.folder / "plugins").write_text("[rabbitmq_management].\n", encoding="ascii")
            with (self.files.folder / "rabbitmq.conf").open("a", encoding="ascii") as config:
                config.write("management.tcp.ip = 127.0.0.1\n")
                config.write(f"management.tcp.port = {self._management_port}\n")

    def ready(self) -> bool:
        # The last boot step is done after the node listens: until then plugins do not, and a list of queues is empty.
        return super().ready() and BOOTED in self.log.read_bytes()[self._logged_before :]

    def evaluate(self, expressions: str) -> str:
        """See `evaluate`."""
        return evaluate(self.files.environment(), expressions)

    def ctl(self, *arguments: str, timeout: float = 300) -> str:
        """Run `rabbitmqctl`, which takes half a second of processor time; return what it prints."""
        command = [str((rabbitmq.scripts() or Path()) / "rabbitmqctl"), "--quiet", *arguments]
        done = subprocess.run(
            command, env=self.files.environment(), capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout
