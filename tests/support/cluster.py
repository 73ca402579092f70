"""Three RabbitMQ nodes on this machine that are one cluster. They share a cookie, a password and a port mapper."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from callboard.commands.services import NotStarted, Process, rabbitmq
from callboard.commands.services.rabbitmq_files import SECRETS
from callboard.commands.services.rabbitmq_programs import epmd
from tests.support.nodes import LeanFolder, Node

NAMES = ("one", "two", "three")


class Member(Node):
    """A node of the cluster. It finds the others at its first start, and is the same member when it starts again."""

    def __init__(self, files: LeanFolder) -> None:
        super().__init__(files.folder)
        self.files = files

    def configure(self) -> None:
        super().configure()
        lines = [
            "cluster_formation.peer_discovery_backend = classic_config",
            "cluster_partition_handling = pause_minority",
        ]
        lines += [
            f"cluster_formation.classic_config.nodes.{number} = {name}@localhost"
            for number, name in enumerate(NAMES, 1)
        ]
        with (self.files.folder / "rabbitmq.conf").open("a", encoding="ascii") as config:
            config.write("\n".join(lines) + "\n")


@contextmanager
def cluster(folder: Path) -> Iterator[list[Member]]:
    """Run three nodes, all of them members when the block begins."""
    members: list[Member] = []
    for name in NAMES:
        files = LeanFolder.at(folder / name)._replace(name=name)
        if members:
            first = members[0].files
            files = files._replace(ports=files.ports._replace(epmd=first.ports.epmd))
            for secret in SECRETS:
                shutil.copy2(first.folder / secret, files.folder / secret)
        members.append(Member(files))
        members[-1].configure()
    mapper, port = epmd(), members[0].files.ports.epmd
    if mapper is None:
        raise NotStarted("no RabbitMQ here; `make test` installs it or says how")
    command: list[str | Path] = [mapper, "-port", str(port), "-address", "127.0.0.1"]
    ports = Process(command, log=folder / "epmd.log", env=members[0].files.environment()).start()
    with ExitStack() as stack:
        stack.callback(ports.kill)
        ports.wait_ready(lambda: rabbitmq.listens(port), rabbitmq.EPMD_SECONDS)
        for member in members:
            stack.callback(member.kill)  # its data is thrown away
            member.begin()
        for member in members:
            member.wait()
        yield members
