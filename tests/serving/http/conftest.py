import asyncio
from collections.abc import Callable, Iterator

import httpx
import pytest
from tests.serving.http.stand_in import StandInService

from sostenuto.serving.http.app import RankingApp, create_app
from sostenuto.serving.http.keys import KeyFile
from sostenuto.serving.http.settings import Limits, ServerSettings
from sostenuto.serving.served_log import ServedLogSettings


class Client:
    """Asks an application in this process, without a server."""

    def __init__(self, app: RankingApp, service: StandInService) -> None:
        self.app, self.service = app, service

    def __call__(self, method: str, path: str, **options: object) -> httpx.Response:
        return self.many([(method, path, options)])[0]

    def many(self, asked: list[tuple[str, str, dict[str, object]]]) -> list[httpx.Response]:
        """Ask all at once."""

        async def ask() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await asyncio.gather(*(client.request(method, path, **kw) for method, path, kw in asked))

        return asyncio.run(ask())


@pytest.fixture
def open_client(tmp_path) -> Iterator[Callable[..., Client]]:
    """Make clients of applications; settings by name, those of `Limits` among them."""
    made: list[RankingApp] = []

    def make(service: StandInService | None = None, *, served: bool = False, **given: object) -> Client:
        service = service or StandInService()
        limits = {name: given.pop(name) for name in list(given) if name in Limits.__dataclass_fields__}
        folder = ServedLogSettings(folder=tmp_path / "served") if served else None
        given.setdefault("log", tmp_path / "requests.jsonl")
        settings = ServerSettings(limits=Limits(**limits), served=folder, **given)
        made.append(create_app(service, settings))
        return Client(made[-1], service)

    yield make
    for app in made:
        app.edge.close()


@pytest.fixture
def client(open_client) -> Client:
    return open_client()


@pytest.fixture
def keys(tmp_path) -> Callable[..., str]:
    """Make keys in tmp_path / "keys.json"."""
    file = KeyFile(tmp_path / "keys.json")

    def make(*scopes: str, **options: object) -> str:
        return file.add("test", scopes, **options)[1]

    return make


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}
