"""Health, metadata and inference over HTTP, against the ranker itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.engines.serve.oip.local_server import VERSION, LocalServer, binary_body, json_body, load, serving


def test_health_and_metadata(server: LocalServer) -> None:
    assert server.get("/v2/health/live") == (200, {"live": True})
    assert server.get("/v2/health/ready") == (200, {"ready": True})
    status, about = server.get("/v2")
    assert (status, about["name"]) == (200, "ugsep")
    assert "binary_tensor_data" in about["extensions"]
    assert server.get("/v2/models/tiny/ready") == (200, {"name": "tiny", "ready": True})
    status, model = server.get(f"/v2/models/tiny/versions/{VERSION}")
    assert status == 200
    assert model["versions"] == [VERSION]
    shapes = {t["name"]: (t["datatype"], t["shape"]) for t in model["inputs"]}
    assert shapes["age"] == ("FP32", [-1, 3])
    assert shapes["recent"] == ("INT64", [-1, 5])
    assert shapes["user_index"] == ("INT64", [-1])
    assert [t["name"] for t in model["outputs"]] == ["like"]
    assert all(set(t) == {"name", "datatype", "shape"} for t in model["inputs"])


def test_the_config_says_what_a_load_generator_needs(server: LocalServer) -> None:
    status, config = server.get("/v2/models/tiny/config")
    assert (status, config["max_batch_size"]) == (200, 0)
    by_name = {t["name"]: t for t in config["input"]}
    assert by_name["genres"] == {"name": "genres", "data_type": "TYPE_FP32", "dims": [-1, 7], "optional": False}
    assert by_name["user_index"]["optional"]
    assert config["parameters"]["max_candidates"] == {"string_value": "64"}


def test_the_user_graph_is_a_model_of_its_own(server: LocalServer) -> None:
    status, model = server.get("/v2/models/tiny.user")
    assert status == 200
    assert {t["name"] for t in model["inputs"]} == {"user_id", "age", "recent"}
    user, _ = tiny.user_and_items(1, seed=7)
    states = server.ranker.user_state(user)
    assert {t["name"]: t["shape"][1:] for t in model["outputs"]} == {n: list(s.shape[1:]) for n, s in states.items()}
    body, json_bytes = binary_body(user, parameters={"binary_data_output": True})
    status, answer = server.infer(body, json_bytes, "tiny.user")
    assert (status, answer["model_name"]) == (200, "tiny.user")
    for name, state in states.items():
        np.testing.assert_array_equal(answer["arrays"][name], state)
    status, answer = server.infer(json_body(user, parameters={"warm_only": True}), model="tiny.user")
    assert (status, answer["outputs"]) == (200, [])


def test_a_warmed_user_is_cached_when_its_candidates_arrive(server: LocalServer) -> None:
    user, items = tiny.user_and_items(4, seed=8)
    status, _ = server.infer(json_body(user, parameters={"warm_only": True}), model="tiny.user")
    assert status == 200
    status, answer = server.infer(json_body({**user, **items}))
    assert status == 200
    assert answer["parameters"]["user_cached"] is True


@pytest.mark.parametrize("candidates", [1, 5, 64])
def test_scores_are_those_of_the_ranker_in_every_encoding(server: LocalServer, candidates: int) -> None:
    user, items = tiny.user_and_items(candidates, seed=candidates)
    expected = server.ranker.score(user, items)["like"]
    both = {**user, **items}
    body, json_bytes = binary_body(both, parameters={"binary_data_output": True}, id="x 1")
    nested = json.loads(json_body(both))
    for tensor in nested["inputs"]:
        tensor["data"] = both[tensor["name"]].tolist()
    mixed = json.loads(json_body(user))
    more, length = binary_body(items)
    mixed["inputs"] += json.loads(more[:length])["inputs"]
    mixed["outputs"] = [{"name": "like", "parameters": {"binary_data": True}}]
    text = json.dumps(mixed).encode()
    for status, answer in (
        server.infer(json_body(both)),
        server.infer(json.dumps(nested).encode()),
        server.infer(body, json_bytes),
        server.infer(text + more[length:], len(text)),
    ):
        assert status == 200
        assert (answer["model_name"], answer["model_version"]) == ("tiny", VERSION)
        assert set(answer["parameters"]) == {"user_cached", "batch_users", "queue_us", "user_us", "item_us"}
        np.testing.assert_array_equal(answer["arrays"]["like"], expected)
    assert server.infer(body, json_bytes)[1]["id"] == "x 1"


def test_several_users_in_one_request(server: LocalServer) -> None:
    users = tiny.rows(tuple(f for f in tiny.FEATURES if f.side == "user"), 3, np.random.default_rng(1))
    _, items = tiny.user_and_items(7, seed=2)
    index = np.array([0, 2, 1, 1, 0, 2, 2])
    status, answer = server.infer(*binary_body({**users, **items, "user_index": index}))
    assert status == 200
    for row in range(7):
        alone = server.ranker.score(
            {n: v[index[row] : index[row] + 1] for n, v in users.items()},
            {n: v[row : row + 1] for n, v in items.items()},
        )
        np.testing.assert_allclose(answer["arrays"]["like"][row], alone["like"][0], atol=1e-4)


def test_a_request_in_pieces_and_a_connection_that_serves_several(server: LocalServer) -> None:
    user, items = tiny.user_and_items(6, seed=3)
    body, json_bytes = binary_body({**user, **items})
    expected = server.ranker.score(user, items)["like"]
    connection = server.http()
    for chunked in (False, True, False):
        headers = {"Inference-Header-Content-Length": str(json_bytes)}
        pieces = iter([body[at : at + 100] for at in range(0, len(body), 100)])
        connection.request("POST", "/v2/models/tiny/infer", pieces if chunked else body, headers)
        answer = connection.getresponse()
        assert answer.status == 200
        np.testing.assert_array_equal(np.float32(json.loads(answer.read())["outputs"][0]["data"]), expected)
    connection.close()


def test_metrics_and_status_are_served(server: LocalServer) -> None:
    status, headers, body = server.send("GET", "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert b"ugsep_requests_total" in body
    status, found = server.get("/status")
    assert (status, found["model"]["name"], found["model"]["state"]) == (200, "tiny", "ready")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("DELETE", "/v2/models/tiny/versions/1/infer", 405),
        ("POST", "/v2/models/tiny", 405),
        ("GET", "/v2/models/tini", 400),
        ("POST", "/v2/models/tini/infer", 400),
        ("POST", "/v2/models/tiny/versions/1/infer", 400),
        ("GET", "/v2/models/tiny/versions/1/config", 400),
        ("POST", "/v2/repository/models/tiny/load", 404),
    ],
)
def test_other_pages_are_one_line(server: LocalServer, method: str, path: str, expected: int) -> None:
    status, headers, body = server.send(method, path, b"{}" if method == "POST" else b"")
    assert status == expected
    assert headers["Content-Type"] == "application/json"
    line = json.loads(body)["error"]
    assert "\n" not in line
    # Starlette writes a set: its order changes with the hash seed.
    allowed = set(headers["Allow"].split(", ")) if "Allow" in headers else None
    assert allowed == {405: {"POST"} if path.endswith("/infer") else {"GET", "HEAD"}}.get(status)
    assert path != "/v2/models/tini" or "did you mean 'tiny'" in line


def test_head_of_an_inference_url_is_refused_without_a_body(server: LocalServer) -> None:
    status, headers, body = server.send("HEAD", "/v2/models/tiny/infer")
    assert (status, headers["Allow"], body) == (405, "POST", b"")


def test_a_server_that_is_not_ready_says_so(built_bundle: Path) -> None:
    with serving(built_bundle, ready=False) as server:
        assert server.get("/v2/health/live") == (200, {"live": True})
        assert server.get("/v2/health/ready") == (503, {"ready": False})
        assert server.get("/v2/models/tiny")[0] == 503
        status, answer = server.infer(b"{}")
        assert (status, list(answer)) == (503, ["error"])
        server.context.slot.switch(load(built_bundle))
        server.context.lifecycle.change("ready")
        assert server.get("/v2/models/tiny/ready")[0] == 200
        server.context.lifecycle.change("draining")
        assert server.get("/v2/health/ready")[0] == 503
        assert server.get("/v2/models/tiny/ready")[0] == 503
        user, items = tiny.user_and_items(3)
        assert server.infer(json_body({**user, **items}))[0] == 200  # served until accepting ends
        server.context.scheduler.stop_accepting()
        assert server.infer(json_body({**user, **items}))[0] == 503
    assert server.bugs == []
