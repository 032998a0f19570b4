"""A real server over the stand-in service: `python running.py SETTINGS.json` in a process of its own, for tests."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
from tests.serving.http.stand_in import StandInService

from sostenuto.serving.http.settings import ServerSettings, make

ROOT = Path(__file__).parents[3]


@dataclasses.dataclass
class Running:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    port: int
    errors: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, **options)

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
def running(
    folder: Path, *, delay_s: float = 0.0, env: dict[str, str] | None = None, **given: object
) -> Iterator[Running]:
    """Start a server with settings as in a TOML file, and end it by its own id."""
    port = free_port()
    given = {"log": str(folder / "requests.jsonl"), **given, "port": port}
    (folder / "settings.json").write_text(json.dumps({"settings": given, "delay_s": delay_s}))
    errors = folder / "stderr.txt"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}", **(env or {})}
    command = [sys.executable, "-m", "tests.serving.http.running", str(folder / "settings.json")]
    with errors.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stderr, stderr=stderr)
    server = Running(process, port, errors)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(server: Running) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise AssertionError(server.errors.read_text())
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(server.url + "/readyz", timeout=5).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(server.errors.read_text())


if __name__ == "__main__":
    from tests.serving.http import stand_in

    from sostenuto.serving.http.server import serve

    told = json.loads(Path(sys.argv[1]).read_text())
    serve(partial(stand_in.StandInService, delay_s=told["delay_s"]), make(ServerSettings, told["settings"], "settings"))

__all__ = ["Running", "StandInService", "free_port", "running"]
