import json
from pathlib import Path

import numpy as np
import pytest

from engines.bundle.fixture_file import Fixture, Fixtures, save_fixtures
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.page.requests_to_try import Offers, infer_body, item_names, listing
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve.page.page_server import served


@pytest.fixture(scope="module")
def tiny_served(built_bundle: Path) -> ServedBundle:
    return served(built_bundle, "a model/1")


def write(folder: Path, **changes: object) -> Fixture:
    user, items = tiny.user_and_items(5)
    made = Fixture("one", user, {**items, **changes}, label="Ann")  # type: ignore[dict-item]
    save_fixtures(folder, "examples", Fixtures((made,), names={"item_id": {str(items["item_id"][0]): "Alien"}}))
    return made


def test_examples_come_before_fixtures(tiny_served: ServedBundle, tmp_path: Path) -> None:
    made = write(tmp_path)
    offers = Offers(tmp_path)
    offers.check(tiny_served)
    offer = offers.of(tiny_served)
    assert offer.source == "examples"
    (listed,) = listing(tiny_served, offer)["requests"]
    assert (listed["label"], listed["users"], listed["candidates"]) == ("Ann", 1, 5)
    assert listed["items"][0] == "Alien"
    assert listed["items"][1] == f"item_id {made.items['item_id'][1]}"
    assert offers.of(tiny_served) is offer, "read once per version"


def test_without_examples_the_fixtures_are_offered_with_their_logits(tiny_served: ServedBundle) -> None:
    offer = Offers(None).of(tiny_served)
    listed = listing(tiny_served, offer)
    assert listed["source"] == "fixtures"
    assert listed["infer"] == "v2/models/a%20model%2F1/infer"
    assert [r["label"] for r in listed["requests"]] == [f.label or f.name for f in tiny_served.fixtures.requests]
    for shown, fixture in zip(listed["requests"], tiny_served.fixtures.requests, strict=True):
        assert np.array_equal(np.float32(shown["expected"]["like"]), fixture.expected["like"])
        assert len(shown["items"]) == shown["candidates"] == fixture.candidates
    assert listed["tolerances"].keys() == {"like"}


def test_examples_of_another_model_are_refused_at_the_start_and_explained_later(
    tiny_served: ServedBundle, tmp_path: Path
) -> None:
    write(tmp_path, genres=np.zeros((5, 3), np.float32))
    offers = Offers(tmp_path)
    with pytest.raises(UgsepError, match=r"examples\.json") as caught:
        offers.check(tiny_served)
    assert "\n" not in str(caught.value)
    offer = offers.of(tiny_served)
    assert offer.source == "fixtures"
    assert "do not fit" in offer.note


def test_a_missing_folder_of_examples_is_one_line(tiny_served: ServedBundle, tmp_path: Path) -> None:
    with pytest.raises(UgsepError, match=r"examples\.json") as caught:
        Offers(tmp_path / "nowhere").check(tiny_served)
    assert "\n" not in str(caught.value)


def test_a_body_has_every_tensor_bit_for_bit() -> None:
    user, items = tiny.user_and_items(7)
    users = {name: np.repeat(value, 2, axis=0) for name, value in user.items()}
    index = np.array([0, 1, 0, 1, 0, 1, 1])
    body = json.loads(json.dumps(infer_body(Fixture("two", users, items, index))))
    sent = {t["name"]: t for t in body["inputs"]}
    assert sent.keys() == {*users, *items, "user_index"}
    for name, value in {**users, **items, "user_index": index}.items():
        assert sent[name]["shape"] == list(value.shape)
        assert sent[name]["datatype"] == {"float32": "FP32", "int64": "INT64"}[value.dtype.name]
        assert np.array_equal(np.array(sent[name]["data"], value.dtype).reshape(value.shape), value)


def test_a_dtype_the_protocol_lacks_is_one_line() -> None:
    with pytest.raises(UgsepError, match="feature 'x' has dtype complex64"):
        infer_body(Fixture("odd", {"x": np.zeros(1, np.complex64)}, {}))


def test_candidates_without_an_id_are_numbered() -> None:
    dense = Fixture("dense", {}, {"genres": np.zeros((2, 3), np.float32)})
    assert item_names(dense, Fixtures((dense,))) == ["candidate 0", "candidate 1"]
    ids = Fixture("ids", {}, {"year": np.array([7, 8]), "item_id": np.array([5, 6])})
    assert item_names(ids, Fixtures((ids,))) == ["year 7", "year 8"]
    assert item_names(ids, Fixtures((ids,), names={"item_id": {"6": "Heat"}})) == ["item_id 5", "Heat"]
