import pytest

from sgquant_optuna.storage import open_storage
from tests.databases import BACKENDS, fresh_database


@pytest.fixture(params=BACKENDS)
def storage(request, tmp_path):
    with fresh_database(request.param, tmp_path) as url:
        opened = open_storage(url)
        yield opened
        opened.engine.dispose()
