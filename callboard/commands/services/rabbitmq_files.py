"""The folder of a private RabbitMQ node: its ports, its secrets, its configuration and its environment."""

import os
import secrets
from pathlib import Path
from typing import NamedTuple, Self

from callboard.commands.services.ports import free_ports

#: The files with the secrets of a node; nodes that share them can form a cluster.
PASSWORD, COOKIE = SECRETS = ("password", ".erlang.cookie")


class Ports(NamedTuple):
    """The ports of a node, all on 127.0.0.1."""

    amqp: int
    distribution: int
    epmd: int


class NodeFolder(NamedTuple):
    """A node's folder. Each object has new ports; cookie, password and data stay the same."""

    folder: Path
    ports: Ports
    name: str = "callboard"

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Create the folder at this path and return it."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder.resolve(), Ports(*free_ports(3)))

    @property
    def password(self) -> str:
        """The password of the node's one user, `callboard`."""
        return _secret(self.folder / PASSWORD)

    def configure(self) -> None:
        """Write the node's files. Password and cookie are written only once, because the data depends on them."""
        _secret(self.folder / COOKIE)
        (self.folder / "plugins").write_text("[].\n", encoding="utf-8")
        lines = [
            f"listeners.tcp.default = 127.0.0.1:{self.ports.amqp}",
            "default_user = callboard",
            f"default_pass = {self.password}",
            "default_user_tags.administrator = true",
        ]
        config = self.folder / "rabbitmq.conf"
        config.touch(mode=0o600)
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """Return the environment of the node and its tools: this process's, without settings of another RabbitMQ."""
        foreign = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
        ours = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        folder = self.folder
        return ours | {
            "HOME": str(folder),  # Erlang reads its cookie here
            "LC_ALL": "C.UTF-8",
            "RABBITMQ_NODENAME": f"{self.name}@localhost",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_DIST_PORT": str(self.ports.distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the node instead of its parent
            "ERL_EPMD_PORT": str(self.ports.epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": str(folder / "erl_crash.dump"),
        }


def _secret(path: Path) -> str:
    """Return the random word in a file that only its owner can read; created at the first call."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(16), encoding="ascii")
        path.chmod(0o400)
    return path.read_text(encoding="ascii")
