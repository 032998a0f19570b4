"""A server in a process of its own: started, waited for until it is ready, and ended by its own id."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
START_S = 300.0  # importing torch on a busy machine


@dataclasses.dataclass
class Running:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    port: int
    errors: Path  # what it wrote on stderr

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, **{"timeout": 20, **options})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def end(self, patience_s: float = 20) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(
    folder: Path, arguments: Sequence[object], *, port: int, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> Iterator[Running]:
    """Run `python ARGUMENTS`, which listens on a port, until the block ends; its stderr goes into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / "stderr.txt"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}", **(env or {})}
    with errors.open("wb") as stderr:
        command = [sys.executable, *map(str, arguments)]
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=stderr, stderr=stderr)
    server = Running(process, port, errors)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(server: Running) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise AssertionError(f"it ended with {server.process.returncode}: {server.errors.read_text()}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(server.url + "/readyz", timeout=5).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(server.errors.read_text())
