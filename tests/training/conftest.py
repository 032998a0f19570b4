from __future__ import annotations

from pathlib import Path

import pytest
from tests.training.toy_prepared import write_toy

from sostenuto.data.prepared import PreparedData


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_toy(Path(tmp_path_factory.mktemp("toy")))
