import pytest

from quant.calibration.calibrate import calibrate
from quant.requests.readers import read_requests
from quant.requests.spec import request_spec


@pytest.fixture
def requests(graphs, make_columns, make_shards, tmp_path):
    make_shards(tmp_path / "data", make_columns(30), [])
    return list(read_requests([tmp_path / "data"], request_spec(*graphs)))


@pytest.fixture
def calibration(graphs, requests):
    return calibrate(*graphs, requests, gram=True)
