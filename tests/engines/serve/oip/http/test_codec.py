"""Bodies that contradict themselves or the model, each refused with one line that says what and where."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.serve.oip.http.codec import HeaderCache, Received, decode_body
from engines.serve.oip.signature import Signature
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve.oip.local_server import binary_body, json_body, load

USER, ITEMS = tiny.user_and_items(3)
BOTH = {**USER, **ITEMS}


@pytest.fixture(scope="module")
def signature(built_bundle: Path) -> Iterator[Signature]:
    served = load(built_bundle)
    yield Signature(served)
    served.ranker.close()


def decode(signature: Signature, body: bytes, json_bytes: int | None = None, users_only: bool = False) -> Any:
    return decode_body(Received(body, 0, json_bytes), signature, users_only, HeaderCache())


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    made = json.loads(json_body(BOTH))
    change(made)
    return json.dumps(made).encode()


def tensor(made: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (t for t in made["inputs"] if t["name"] == name)
    return found


def put(name: str, key: str, value: Any) -> bytes:
    return edited(lambda made: tensor(made, name).__setitem__(key, value))


BAD_JSON = [
    (b"", "Input data was truncated"),
    (b"[]", "Expected `object`"),
    (b"{}", "missing required field `inputs`"),
    (b"\xff", "malformed"),
    (b'{"inputs":' * 100_000, "JSON"),
    (b'{"inputs":[' + b"[" * 100_000, "JSON"),
    (edited(lambda made: made.update(inputs=[])), "input 'user_id' is missing"),
    (edited(lambda made: made.update(priority=1)), "unknown field `priority`"),
    (edited(lambda made: made.update(id="a\x1bb")), "control characters"),
    (edited(lambda made: made.update(id="a" * 1000)), "at most 256"),
    (edited(lambda made: made.update(model_name="other")), "differs from the URL"),
    (edited(lambda made: made.update(parameters={"timeout": -1})), "timeout must be"),
    (edited(lambda made: made.update(parameters={"timeout": 10**30})), "timeout must be"),
    (edited(lambda made: made.update(parameters={"warm_only": True})), "warm_only is for model 'tiny.user'"),
    (edited(lambda made: made.update(outputs=[{"name": "lik"}])), "unknown output 'lik', did you mean 'like'?"),
    (edited(lambda made: made.update(outputs=[{"name": "like"}] * 2)), "asked for twice"),
    (edited(lambda made: made["inputs"].append(made["inputs"][0])), "input 'user_id' is given twice"),
    (json_body(BOTH).replace(b'"shape": [1, 3]', b'"shape": [2, 3], "shape": [1, 3]'), "a key is given twice"),
    (json_body(BOTH).replace(b'{"inputs"', b'{"inputs": [], "inputs"'), "a key is given twice"),
    (put("age", "name", "agee"), "did you mean 'age'?"),
    (put("age", "name", "\x00" * 5000), "has no input"),
    (put("age", "datatype", "INT64"), "input 'age' has datatype 'INT64'; send FP32"),
    (put("age", "datatype", "BYTES"), "strings are not features"),
    (put("age", "datatype", "FP23"), "did you mean 'FP32'?"),
    (put("age", "shape", [3]), "has shape [3]; send [rows, 3]"),
    (put("age", "shape", [1, 10**30]), "has shape [1, huge]"),
    (put("age", "shape", [0, 3]), "so no rows"),
    (put("age", "shape", [-1, 3]), "so no rows"),
    (put("item_id", "shape", [65]), "input 'item_id' has 65 rows; the engines accept at most 64"),
    (put("item_id", "shape", [2**62]), "at most 64"),
    (put("item_id", "shape", [1.5]), "Expected `integer`, got `number`"),
    (put("item_id", "data", [1, 2]), "'data' has 2 values, its shape [3] 3"),
    (put("item_id", "data", [1, 2, 3, 4]), "'data' has 4 values"),
    (put("item_id", "data", [1, 2, 1.5]), "is not INT64[3]: Expected `integer`, got `number`"),
    (put("item_id", "data", [1, 2, True]), "is not INT64[3]: Expected `integer`, got `boolean`"),
    (put("item_id", "data", [1, 2, 2**63]), "is not INT64[3]: a number is out of range"),
    (put("item_id", "data", [1, 2, 10**40]), "is not INT64[3]"),
    (put("item_id", "data", [1, 2, None]), "is not INT64[3]: Expected `integer`, got `null`"),
    (put("item_id", "data", "123"), "is not a list"),
    (put("item_id", "data", [[1], [2], [3]]), "is not INT64[3]"),
    (put("age", "data", [[1.0, 2.0], [3.0]]), "is not FP32[1, 3]: its lists differ in length"),
    (put("age", "data", [float("nan"), 1, 2]), "JSON"),
    (put("age", "data", [1, "2", 3]), "is not FP32[1, 3]: Expected `number`, got `string`"),
    (put("age", "name", None), "Expected `string`, got `null` - at `$.inputs["),
    (edited(lambda made: made.update({"a\nb": 1})), "Object contains unknown field `a b`"),
    (put("age", "parameters", {"binary_data_size": 12}), "both 'data' and binary_data_size"),
    (put("age", "parameters", {"shared_memory_region": "x"}), "unknown field"),
    (edited(lambda made: tensor(made, "age").pop("data")), "neither 'data' nor binary_data_size"),
]


@pytest.mark.parametrize(("body", "line"), BAD_JSON, ids=range(len(BAD_JSON)))
def test_bad_json_is_refused(signature: Signature, body: bytes, line: str) -> None:
    with pytest.raises(UgsepError) as caught:
        decode(signature, body)
    assert line in str(caught.value)
    assert len(str(caught.value)) < 600


def test_bad_binary_bodies_are_refused(signature: Signature) -> None:
    body, end = binary_body(BOTH)
    text = json.loads(body[:end])
    text["inputs"][0]["parameters"]["binary_data_size"] = 1 << 40
    huge = json.dumps(text).encode()
    for sent, length, line in (
        (body[:-1], end, "bytes after its JSON"),
        (body + b"\0", end, "bytes after its JSON"),
        (body, end - 1, "JSON"),
        (body, end + 1, "JSON"),
        (body, len(body) + 1, "but the body has"),
        (body, None, "JSON"),
        (huge + body[end:], len(huge), "takes 8 bytes; its binary_data_size differs"),
        (body[:end], end, "bytes after its JSON"),
    ):
        with pytest.raises(UgsepError) as caught:
            decode(signature, sent, length)
        assert line in str(caught.value)


def test_the_user_graph_takes_user_features_only(signature: Signature) -> None:
    with pytest.raises(UgsepError, match=r"'item_id' belongs to candidates; model 'tiny.user'"):
        decode(signature, json_body(BOTH), users_only=True)
    decoded = decode(signature, json_body(USER, parameters={"warm_only": True}), users_only=True)
    assert (decoded.users_only, decoded.items, decoded.reply.warm_only) == (True, {}, True)


def test_binary_tensors_are_aligned_and_most_are_views(signature: Signature) -> None:
    body, end = binary_body(BOTH)
    for padding in range(8):
        sent = body[:end] + b" " * padding + body[end:]
        for at in range(8):  # behind its head
            received = Received(b"x" * at + sent, at, end + padding)
            decoded = decode_body(received, signature, False, HeaderCache())
            for name, value in {**decoded.user, **decoded.items}.items():
                assert value.flags.aligned
                np.testing.assert_array_equal(value, BOTH[name])
            owned = [
                value.nbytes for value in (*decoded.user.values(), *decoded.items.values()) if value.flags.owndata
            ]
            assert sum(owned) <= (len(body) - end) / 2  # the rest is used in place, or was copied at once


def test_a_header_seen_before_is_read_the_same_with_other_tensors(signature: Signature) -> None:
    headers = HeaderCache()
    for seed in range(3):
        user, items = tiny.user_and_items(3, seed)
        body, end = binary_body({**user, **items})
        decoded = decode_body(Received(body, 0, end), signature, False, headers)
        np.testing.assert_array_equal(decoded.items["genres"], items["genres"])
    with pytest.raises(UgsepError, match="belongs to candidates"):
        decode_body(Received(body, 0, end), signature, True, headers)
    with pytest.raises(UgsepError, match="bytes after its JSON"):
        decode_body(Received(body[:-4], 0, end), signature, False, headers)


def test_a_header_is_parsed_again_for_another_bundle(signature: Signature) -> None:
    headers = HeaderCache()
    body, end = binary_body(BOTH)
    decode_body(Received(body, 0, end), signature, False, headers)
    other = Signature(signature.served)
    other.inputs = {name: rule for name, rule in signature.inputs.items() if name != "genres"}
    with pytest.raises(UgsepError, match="no input 'genres'"):
        decode_body(Received(body, 0, end), other, False, headers)
