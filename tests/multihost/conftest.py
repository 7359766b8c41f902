"""Runs of `t2g` in two processes that find each other over the loopback device."""

import dataclasses
import os
import pathlib
import signal
import socket
import time

import pytest
from starter import Starter


@dataclasses.dataclass
class Processes:
    """The processes of one run, in their order."""

    starter: Starter
    ids: list[int]
    logs: list[pathlib.Path]

    def statuses(self, timeout=300) -> list[int]:
        """Their exit statuses, once all have ended."""
        ends = time.monotonic() + timeout
        try:
            return [self.starter.status(id, ends - time.monotonic()) for id in self.ids]
        except AssertionError:
            self.kill()
            raise AssertionError(self.said()) from None

    def send(self, process: int, number: signal.Signals) -> None:
        os.kill(self.ids[process], number)

    def kill(self) -> None:
        for id in self.ids:
            if id not in self.starter.statuses:
                os.kill(id, signal.SIGKILL)

    def when(self, condition, timeout=300) -> None:
        """Waits until a function returns true."""
        ends = time.monotonic() + timeout
        while not condition():
            gone = any(id in self.starter.statuses for id in self.ids)
            if gone or time.monotonic() > ends:
                self.kill()
                raise AssertionError(self.said())
            time.sleep(0.05)

    def said(self) -> str:
        return "\n".join(f"--- process {i}\n{self.log(i)[-4000:]}" for i in range(len(self.ids)))

    def log(self, process: int) -> str:
        return self.logs[process].read_text()


@pytest.fixture(scope="session")
def config(root) -> pathlib.Path:
    return root / "tests" / "configs" / "two_processes.yaml"


@pytest.fixture(scope="session")
def starter(programs):
    starter = Starter(programs)
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def start(starter, one_device, tmp_path_factory):
    """start(*arguments, processes=2, devices=2) → `Processes`; devices are of each process.

    "{process}" in an argument becomes the number of the process.
    """
    running = []

    def start(*arguments, processes=2, devices=2):
        folder = tmp_path_factory.mktemp("logs")
        port = free_port()
        flags = f"{one_device} --xla_force_host_platform_device_count={devices}"
        found = Processes(starter, [], [])
        for i in range(processes):
            environment = {"XLA_FLAGS": flags}
            if processes > 1:
                environment |= {
                    "T2G_COORDINATOR": f"localhost:{port}",
                    "T2G_NUM_PROCESSES": processes,
                    "T2G_PROCESS_ID": i,
                }
            words = [str(word).replace("{process}", str(i)) for word in arguments]
            found.logs.append(folder / f"{i}.txt")
            found.ids.append(starter.start(words, environment, found.logs[-1]))
        running.append(found)
        return found

    yield start
    for found in running:
        found.kill()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]
