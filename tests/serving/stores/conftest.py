"""Both stores for every test that asks for one; Redis is a server of this test run's own."""

import itertools

import pytest
from tests.serving.stores.redis_server import start_redis

from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store

LAYOUT = RecordLayout(fields=(("channel", "categorical"), ("price", "numeric")))
NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    server = start_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.end()


@pytest.fixture(params=["lmdb", "redis"])
def kind(request):
    return request.param


@pytest.fixture
def new_location(kind, request, tmp_path):
    """A function that gives locations where no store is yet."""
    server = request.getfixturevalue("redis_server") if kind == "redis" else None

    def location():
        number = next(NUMBERS)
        return f"lmdb:{tmp_path / f'store{number}'}" if server is None else server.url(f"store{number}")

    return location


@pytest.fixture
def new_store(new_location):
    """A function that makes stores, which are closed in the end."""
    made = []

    def store(layout=LAYOUT, **options):
        made.append(open_store(new_location(), layout, **options))
        return made[-1]

    yield store
    for each in made:
        each.close()


@pytest.fixture
def store(new_store):
    return new_store()
