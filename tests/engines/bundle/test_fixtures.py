"""Fixtures and examples against the engines of a bundle: what does not fit is refused before it is scored."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends.contract import Array
from engines.bundle.files import hash_file
from engines.bundle.fixture_file import Fixture, Fixtures, save_fixtures
from engines.bundle.fixtures import read_examples, read_fixtures
from engines.bundle.manifest import read_manifest
from graphs.base.errors import UgsepError
from tests.manifests import edit_raw, write_raw

NAMES = ("fixtures.json", "fixtures.safetensors")


@pytest.fixture
def shell(built_bundle: Path, tmp_path: Path) -> Path:
    """The manifest and the fixtures of the tiny bundle, without its engines."""
    for name in ("manifest.json", *NAMES):
        shutil.copy(built_bundle / name, tmp_path / name)
    return tmp_path


def hash_again(bundle: Path) -> None:
    """Make the manifest vouch for the fixtures as they are."""
    raw = json.loads((bundle / "manifest.json").read_text())
    raw["files"] |= {name: dataclasses.asdict(hash_file(bundle / name)) for name in NAMES}
    write_raw(bundle, raw)


def changed(fixtures: Fixtures, which: str, /, **changes: object) -> Fixtures:
    """Replace fields of one request."""
    requests = (dataclasses.replace(f, **changes) if f.name == which else f for f in fixtures.requests)  # type: ignore[arg-type]
    return dataclasses.replace(fixtures, requests=tuple(requests))


def test_the_fixtures_exercise_a_server(built_bundle: Path) -> None:
    found = read_fixtures(built_bundle)
    sizes = {f.name: (f.users, f.candidates) for f in found.requests}
    assert sizes == {
        "one-candidate": (1, 1), "few-candidates": (1, 4), "same-user": (1, 4), "largest-size": (1, 9),
        "several-users": (3, 9),
    }  # fmt: skip
    few, same = found.requests[1:3]
    assert all(np.array_equal(few.user[name], same.user[name]) for name in few.user)
    assert not np.array_equal(few.items["affinity"], same.items["affinity"])
    assert all(set(f.expected) == set(f.reference) == {"like"} for f in found.requests)
    assert not any(value.flags.writeable for f in found.requests for value in f.items.values())


def test_they_are_hashed(shell: Path) -> None:
    for name in NAMES:
        whole = (shell / name).read_bytes()
        (shell / name).write_bytes(whole[:-1] + b"x")
        with pytest.raises(UgsepError, match=f"{name}: sha256 .* but the manifest says .*rebuild: make engines"):
            read_fixtures(shell)
        (shell / name).write_bytes(whole)
    read_fixtures(shell)


def test_a_bundle_without_fixtures_is_refused(shell: Path) -> None:
    raw = json.loads((shell / "manifest.json").read_text())
    del raw["files"]["fixtures.json"]
    write_raw(shell, raw)
    with pytest.raises(UgsepError, match=r"no fixtures.json among the hashed files; rebuild: make engines"):
        read_fixtures(shell)


def item(name: str, value: Array) -> Callable[[Fixtures], Fixtures]:
    return lambda f: changed(f, "few-candidates", items={**f.requests[1].items, name: value})


def without(kind: str, name: str) -> Callable[[Fixtures], Fixtures]:
    def change(f: Fixtures) -> Fixtures:
        kept = {k: v for k, v in getattr(f.requests[1], kind).items() if k != name}
        return changed(f, "few-candidates", **{kind: kept})

    return change


def indexed(*users: int) -> Callable[[Fixtures], Fixtures]:
    return lambda f: changed(f, "several-users", user_index=np.array(users, np.int64))


def of_ids(names: dict[str, dict[str, str]]) -> Callable[[Fixtures], Fixtures]:
    return lambda f: dataclasses.replace(f, names=names)


F4 = np.ones(4, np.float32)
BAD: dict[str, tuple[Callable[[Fixtures], Fixtures], str]] = {
    "no requests": (lambda f: Fixtures(()), "there must be one"),
    "no expected logits": (lambda f: changed(f, "same-user", expected={}), "every fixture needs expected logits"),
    "a long name": (lambda f: changed(f, "same-user", name="x" * 257), "has 257 characters; at most 256"),
    "a long label": (lambda f: changed(f, "same-user", label="x" * 257), "its label has 257 characters"),
    "a feature missing": (without("items", "genres"), "request 'few-candidates': item feature 'genres' is missing"),
    "a user feature missing": (without("user", "age"), "user feature 'age' is missing"),
    "an unknown feature": (item("genre", F4), "item feature 'genre' is unknown, did you mean 'genres'"),
    "state of the user": (item("user_index", np.zeros(4, np.int64)), "item feature 'user_index' is unknown"),
    "another dtype": (item("item_id", np.zeros(4, np.int32)), r"'item_id' is int32\[4\]; the engine has int64 rows"),
    "another width": (item("genres", np.ones((4, 6), np.float32)), r"float32\[4, 6\]; .* rows of shape \[7\]"),
    "another rank": (item("genres", np.ones((4, 7, 1), np.float32)), r"rows of shape \[7\]"),
    "an unknown task": (
        lambda f: changed(f, "same-user", expected={**f.requests[2].expected, "buy": F4}),
        "expected logits of task 'buy' is unknown",
    ),
    "logits in float64": (
        lambda f: changed(f, "same-user", reference={"like": np.ones(4)}),
        r"reference logits of task 'like' is float64\[4\]",
    ),
    "labels of an unknown task": (lambda f: changed(f, "same-user", labels={"buy": F4}), "labels of task 'buy'"),
    "users without an index": (lambda f: changed(f, "several-users", user_index=None), "3 users and no user_index"),
    "an index of no user": (indexed(0, 1, 2, 3, 0, 1, 2, 0, 1), "user_index must be in 0 to 2"),
    "a negative index": (indexed(0, 1, 2, -1, 0, 1, 2, 0, 1), "user_index must be in 0 to 2"),
    "no tolerance": (lambda f: dataclasses.replace(f, tolerances={}), r"are for \[\], must be for \['like'\]"),
    "a negative tolerance": (lambda f: dataclasses.replace(f, tolerances={"like": -1.0}), "it must be at least 0"),
    "names of no input": (of_ids({"item": {"1": "x"}}), "names of 'item', which is not an id input, did you mean"),
    "names of numbers": (of_ids({"genres": {"1": "x"}}), "names of 'genres', which is not an id input"),
    "names of no id": (of_ids({"item_id": {"-1": "x"}}), "names of 'item_id': '-1' is not an id"),
    "names of digits of another script": (of_ids({"item_id": {"٣": "x"}}), "is not an id"),
    "a long name of an id": (of_ids({"item_id": {"1": "x" * 257}}), "the name of item_id 1 has 257 characters"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD))
def test_what_does_not_fit_the_engines_is_refused_in_one_line(shell: Path, case: str) -> None:
    change, says = BAD[case]
    save_fixtures(shell, "fixtures", change(read_fixtures(shell)))
    hash_again(shell)
    with pytest.raises(UgsepError, match=says) as caught:
        read_fixtures(shell)
    assert str(caught.value).isprintable()
    assert "rebuild: make engines MODEL=tiny" in str(caught.value)


def test_requests_that_share_tensors_are_bounded(shell: Path) -> None:
    found = read_fixtures(shell)
    largest = found.requests[3]
    many = [dataclasses.replace(largest, name=str(i)) for i in range(4097)]
    save_fixtures(shell, "fixtures", dataclasses.replace(found, requests=tuple(many)))
    assert (shell / "fixtures.safetensors").stat().st_size < 10_000, "sharing costs a file nothing"
    hash_again(shell)
    with pytest.raises(UgsepError, match="4097 requests of 36873 candidates; at most 4096"):
        read_fixtures(shell)


def test_an_engine_for_single_users_has_no_fixture_of_several(shell: Path) -> None:
    raw = json.loads((shell / "manifest.json").read_text())
    for engine in raw["engines"]:
        engine["built"]["inputs"] = [i for i in engine["built"]["inputs"] if i["name"] != "user_index"]
    write_raw(shell, raw)
    with pytest.raises(UgsepError, match="has a user_index, but the item engine serves one user per call"):
        read_fixtures(shell)


def test_examples_need_no_expected_logits_and_have_names(built_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(built_bundle)
    one = read_fixtures(built_bundle).requests[1]
    shown = Fixture("u1", one.user, one.items, label="Anna, 31", labels={"like": F4})
    names = {"item_id": {"7": "Amélie (2001)", "60": "<script>alert(1)</script>"}}
    save_fixtures(tmp_path, "examples", Fixtures((shown,), {}, names))
    found = read_examples(tmp_path, manifest)
    assert (found.names, found.requests[0].label, dict(found.requests[0].expected)) == (names, "Anna, 31", {})
    with pytest.raises(UgsepError, match=r"no fixtures.json; write the examples again for this bundle"):
        read_examples(tmp_path, manifest, stem="fixtures")
    save_fixtures(tmp_path, "examples", Fixtures((dataclasses.replace(shown, items={"item_id": np.arange(4)}),)))
    with pytest.raises(UgsepError, match=r"examples.json: request 'u1': item feature 'genres' is missing; write"):
        read_examples(tmp_path, manifest)


def test_logits_in_a_column_fit_an_engine_that_gives_a_column(shell: Path) -> None:
    """A third-party module often ends in Linear(n, 1) and gives [N, 1]."""
    found = read_fixtures(shell)
    columns = tuple(
        dataclasses.replace(f, expected={t: v[:, None] for t, v in f.expected.items()},
                            reference={t: v[:, None] for t, v in f.reference.items()})
        for f in found.requests
    )  # fmt: skip
    save_fixtures(shell, "fixtures", dataclasses.replace(found, requests=columns))
    hash_again(shell)
    with pytest.raises(UgsepError, match=r"the engine has float32 rows of shape \[\]"):
        read_fixtures(shell)

    def in_columns(raw: dict[str, Any]) -> None:
        for engine in raw["engines"]:
            if engine["built"]["side"] == "item":
                engine["built"]["outputs"][0]["shape"] = ["candidates", 1]

    edit_raw(shell, in_columns)
    assert read_fixtures(shell).requests[0].expected["like"].shape == (1, 1)
