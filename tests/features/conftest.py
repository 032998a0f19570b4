from __future__ import annotations

from pathlib import Path

import pytest
from tests.features.small_prepared import write_small

from sostenuto.data.prepared import PreparedData


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_small(Path(tmp_path_factory.mktemp("small")))
