"""A real server over the stand-in service: `python running.py SETTINGS.json` in a process of its own, for tests."""

import contextlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.serving.server_process import Running, free_port, started

from sostenuto.serving.http.settings import ServerSettings, make


@contextlib.contextmanager
def running(
    folder: Path, *, delay_s: float = 0.0, env: dict[str, str] | None = None, **given: object
) -> Iterator[Running]:
    """Start a server with settings as in a TOML file, and end it by its own id."""
    port = free_port()
    given = {"log": str(folder / "requests.jsonl"), **given, "port": port}
    (folder / "settings.json").write_text(json.dumps({"settings": given, "delay_s": delay_s}))
    with started(folder, ["-m", __name__, folder / "settings.json"], port=port, env=env) as server:
        yield server


if __name__ == "__main__":
    from tests.serving.http import stand_in

    from sostenuto.serving.http.server import serve

    told = json.loads(Path(sys.argv[1]).read_text())
    serve(partial(stand_in.StandInService, delay_s=told["delay_s"]), make(ServerSettings, told["settings"], "settings"))

__all__ = ["running"]
