"""Everything on this machine: database, broker, workers and web app, started together and stopped in order."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from callboard.commands.local import processes
from callboard.commands.local.backing_services import BackingServices
from callboard.commands.local.supervisor import RestartState, Supervisor
from callboard.commands.services.ports import free_ports

#: The addresses, for the commands that are called in the same place.
UP = "up.json"


class LocalStack:
    """See the module. `folder` holds data, logs and `up.json`; a `throwaway` one is stopped without care for them."""

    def __init__(
        self,
        folder: Path,
        *,
        processes: int,
        threads: int,
        port: int = 0,
        in_process: bool = False,
        throwaway: bool = False,
    ) -> None:
        self.folder = folder
        self.processes = processes
        self.threads = threads
        self.port = port or free_ports(1)[0]
        self.keeper = Supervisor()
        self._stopping = ExitStack()
        self.house = BackingServices(folder, throwaway, in_process, self._stopping)

    @property
    def web_url(self) -> str:
        """Where a browser finds it."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def inside(self) -> bool:
        """Whether the broker and the worker are in this process."""
        return self.house.amqp_url is None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with undisturbed():
            self._stopping.close()

    def _start(self) -> None:
        """From the thread that lives longest: children end with the one that started them."""
        self._stopping.callback(self.keeper.end)
        (self.folder / UP).unlink(missing_ok=True)  # left by one that was killed
        self.house.open()
        self._stopping.enter_context(variables(self._addresses()))
        web = processes.web(self.port, self.folder, os.environ)
        self._keep([web])
        self.house.wait()
        self._hire()
        web.wait()
        self._stopping.enter_context(announced(self.folder, {**self._addresses(), "web_url": self.web_url}))
        self.keeper.kept += self.house.kept
        self.keeper.begin()
        self._stopping.callback(self.keeper.hush)

    def _hire(self) -> None:
        if self.inside:
            worker = processes.InProcessWorker(self.threads, self.folder)
            self._stopping.callback(worker.stop)
            worker.start()
            return
        workers = [
            processes.worker(n, self.threads, self.folder, os.environ) for n in range(1, self.processes + 1)
        ]
        self._keep(workers)
        for one in workers:
            one.wait()

    def _keep(self, members: list[processes.ManagedProcess]) -> None:
        """Start them, and stop them at the same time."""
        for one in members:
            self._stopping.callback(one.stop)
        for one in members:
            self._stopping.callback(one.ask_to_end)
            one.start()
            self.keeper.kept.append(RestartState(one.name, one.process.running, one.start, one.process.log))

    def _addresses(self) -> dict[str, str | None]:
        return {"database_url": self.house.database_url, "amqp_url": self.house.amqp_url}


@contextmanager
def undisturbed() -> Iterator[None]:
    """No signal breaks off what runs inside: it has limits of its own."""
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def variables(values: dict[str, str | None]) -> Iterator[None]:
    """Environment variables, named in capitals, for this process and its children."""
    names = {name.upper(): value for name, value in values.items()}
    before = {name: os.environ.get(name) for name in names}
    _set(names)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def announced(folder: Path, addresses: dict[str, str | None]) -> Iterator[None]:
    """`up.json` for the commands that are called in the same place; only its owner may read it."""
    path, new = folder / UP, folder / f"{UP}.new"
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(json.dumps(addresses) + "\n", encoding="utf-8")
    new.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
