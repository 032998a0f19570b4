"""`sostenuto serve` over a real store, in a process of its own, and who asks it."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tests.serving.server_process import Running, free_port, started

from sostenuto.schema.events import Event
from sostenuto.serving.parity import Question

MSGPACK = {"content-type": "application/msgpack", "accept": "application/msgpack"}


@contextlib.contextmanager
def live_server(
    folder: Path, *, store: str, bundle: Path, workers: int = 1, env: dict[str, str] | None = None, **service: Any
) -> Iterator[Running]:
    """Start `sostenuto serve`, and end it by its own id.

    Args:
        folder:  of the server: settings, control, request log, stderr.
        store:   location.
        bundle:  that answers.
        workers: processes.
        env:     further environment.
        service: of the table `[service]`; `limits` and `served` are tables of their own.
    """
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "limits": {"future_s": 10**9, "request_timeout_s": 60.0, **service.pop("limits", {})},
        "served": service.pop("served", {}),
        "service": service,
    }
    lines = [f"port = {port}", f"workers = {workers}", f'log = "{folder / "requests.jsonl"}"']
    for name, table in tables.items():
        if table:
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    (folder / "settings.toml").write_text("\n".join(lines) + "\n")
    told = ["--store", store, "--control", folder / "control", "--settings", folder / "settings.toml"]
    with started(folder, ["-m", "sostenuto", "serve", bundle, *told], port=port, env=env) as server:
        yield server


class OverHTTP(contextlib.AbstractContextManager):
    """A service behind HTTP, in msgpack, as `parity.replay` asks it."""

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def __init__(self, server: Running) -> None:
        self.client = server.client(headers=MSGPACK)
        self.states: list[str] = []

    def score(self, question: Question, model: str) -> Sequence[float]:
        """An item that stands in two candidate lists of a request is asked for in two calls."""
        times: dict[str, int] = {}
        turns: list[list[int]] = []
        for n, item in enumerate(question.items):
            turn = times[item] = times.get(item, -1) + 1
            if turn == len(turns):
                turns.append([])
            turns[turn].append(n)
        found = [0.0] * len(question.items)
        for positions in turns:
            for n, score in zip(positions, self._scored(question, positions, model), strict=True):
                found[n] = score
        return found

    def _scored(self, question: Question, positions: Sequence[int], model: str) -> list[float]:
        items = [question.items[n] for n in positions]
        sent = {
            "user_id": question.user_id,
            "time_ms": question.time_ms,
            "candidates": items,
            "place": question.place,
            "candidate_fields": {name: [c[n] for n in positions] for name, c in question.candidate_fields.items()},
            "context": question.context,
            "model": model,
        }
        answer = self.post("/v1/rank", sent)
        self.states.append(answer["state"])
        score = dict(zip(answer["items"], answer["scores"], strict=True))
        return [score[item] for item in items]

    def append(self, events: Sequence[Event]) -> None:
        for at in range(0, len(events), 500):
            rows = []
            for event in events[at : at + 500]:
                row = {
                    "event_id": event.event_id,
                    "user_id": event.user_id,
                    "item_id": event.item_id,
                    "time_ms": event.time_ms,
                    "action": event.action,
                    "place": event.place,
                    "fields": {name: value for name, value in event.fields.items() if value == value},
                }
                rows.append(row if event.value != event.value else row | {"value": event.value})
            self.post("/v1/events", rows)

    def post(self, path: str, body: Any) -> Any:
        answer = self.client.post(path, content=msgspec.msgpack.encode(body))
        assert answer.status_code < 300, (
            answer.text if answer.content[:1] == b"{" else msgspec.msgpack.decode(answer.content)
        )
        return msgspec.msgpack.decode(answer.content)

    def put(self, path: str, body: Any) -> Any:
        answer = self.client.put(path, content=msgspec.msgpack.encode(body))
        assert answer.status_code < 300, answer.content
        return msgspec.msgpack.decode(answer.content)

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code < 300, answer.content
        return msgspec.msgpack.decode(answer.content)
