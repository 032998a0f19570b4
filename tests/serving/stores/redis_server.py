"""A redis-server of a test's own: in a folder of its own, on a unix socket, ended by its process."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_S = 20.0


class RedisServer:
    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        # a path of a socket is short: at most 107 bytes
        self.socket = Path(tempfile.mkdtemp(prefix="redis-")) / "s"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def url(self, name: str = "sostenuto") -> str:
        return f"unix://{self.socket}?name={name}"

    def client(self):
        import redis

        return redis.Redis(unix_socket_path=str(self.socket), protocol=2)

    def start(self) -> None:
        import redis

        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*command, *durable, *self.options], stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while True:
            try:
                with self.client() as asked:
                    asked.ping()
            except redis.ConnectionError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < until, (self.folder / "log").read_text()
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.socket.parent, ignore_errors=True)


@contextlib.contextmanager
def place_of(kind: str, folder: Path) -> Iterator[str]:
    """Give the location of a store, lmdb or redis, below a folder; a server of redis ends with the block."""
    if kind == "lmdb":
        yield f"lmdb:{folder / 'store'}"
        return
    redis = start_redis(folder / "redis")
    try:
        yield redis.url()
    finally:
        redis.end()


def start_redis(folder: Path, *options: str) -> RedisServer:
    pytest.importorskip("redis", reason="the client of Redis is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server, which is not installed here; Debian and Ubuntu: apt-get install redis-server")
    return RedisServer(folder, *options)
