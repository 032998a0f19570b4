import pytest
from tests.reports.invented import invented_comparison


@pytest.fixture(scope="session")
def comparison():
    return invented_comparison(requests=150, draws=200)
