from pathlib import Path

import numpy as np
import pytest

from engines.bundle.fixture_file import Fixtures, load_fixtures, save_fixtures
from examples.movielens.data.examples import NEW, choose, display_title
from examples.movielens.data.prepare import build
from examples.movielens.data.requests import group
from examples.movielens.data.tables import Items, Ratings, Users, read_titles

Tables = tuple[Ratings, Users, Items]


def chosen(tables: Tables, raw: dict[str, bytes], fewest: int = 2, rated: int = 1) -> Fixtures:
    features, splits = build(*tables, test_days=12)
    _, requests = group(tables[0])
    test, titles = splits["test"], read_titles(raw["item"])
    return choose(features, test.columns, test.request_id, requests, tables[1], titles, fewest, rated)


def test_examples_are_held_out_requests_with_titles_and_likes(tables: Tables, raw: dict[str, bytes]) -> None:
    features, splits = build(*tables, test_days=12)
    test = splits["test"].columns
    found = chosen(tables, raw)
    assert len(found.requests) > 2
    users = [f.name for f in found.requests]
    assert len(set(users)) == len(users)
    assert users == sorted(users, key=lambda name: int(name.removeprefix("user-")))
    for fixture in found.requests:
        assert fixture.user.keys() == {f.name for f in features if f.side == "user"}
        assert fixture.items.keys() == {f.name for f in features if f.side == "item"}
        first = np.flatnonzero((test["taste"] == fixture.user["taste"]).all(axis=1))[0]
        rows = slice(first, first + fixture.candidates)
        assert all((test[name][rows] == value).all() for name, value in fixture.items.items())
        assert (test["like"][rows] == fixture.labels["like"]).all()
        assert 0 < fixture.labels["like"].sum() < fixture.candidates
        assert 0 not in fixture.items["item_id"]
        assert np.count_nonzero(fixture.user["recent_items"]) >= 1
        assert fixture.label.startswith(f"User {fixture.name.removeprefix('user-')}: ")
    shown = {str(i) for f in found.requests for i in f.items["item_id"].tolist()}
    assert set(found.names["item_id"]) == {"0", *shown}
    assert found.names["item_id"]["0"] == NEW
    assert all(f'The "{i}th" Film' in found.names["item_id"][i] for i in shown)


def test_small_requests_and_strangers_are_left_out(tables: Tables, raw: dict[str, bytes]) -> None:
    assert chosen(tables, raw, fewest=1000).requests == ()
    assert chosen(tables, raw, rated=21).requests == (), "a history holds 20 films"
    largest = max(f.candidates for f in chosen(tables, raw).requests)
    some = chosen(tables, raw, fewest=largest).requests
    assert {f.candidates for f in some} == {largest}
    assert len(some) < len(chosen(tables, raw).requests)


def test_the_same_data_give_the_same_bytes(tmp_path: Path, tables: Tables, raw: dict[str, bytes]) -> None:
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        save_fixtures(folder, "examples", chosen(tables, raw))
        written.append([(folder / f"examples.{kind}").read_bytes() for kind in ("json", "safetensors")])
    assert written[0] == written[1]
    assert len({path.stat().st_mode for path in (tmp_path / "a").iterdir()}) == 1, "as readable as its JSON"
    assert len(load_fixtures(tmp_path / "a", "examples", "").requests) == len(chosen(tables, raw).requests)


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Toy Story (1995)", "Toy Story (1995)"),
        ("Usual Suspects, The (1995)", "The Usual Suspects (1995)"),
        ("Postino, Il (1994)", "Il Postino (1994)"),
        ("Enfer, L' (1994)", "L'Enfer (1994)"),
        ("Seventh Seal, The (Sjunde inseglet, Det) (1957)", "The Seventh Seal (Sjunde inseglet, Det) (1957)"),
        ("Queen Margot (Reine Margot, La) (1994)", "Queen Margot (Reine Margot, La) (1994)"),
        ("Sex, Lies, and Videotape (1989)", "Sex, Lies, and Videotape (1989)"),
        ("Cry, the Beloved Country (1995)", "Cry, the Beloved Country (1995)"),
        ("Mostro, Il", "Il Mostro"),
    ],
)
def test_articles_come_first(title: str, shown: str) -> None:
    assert display_title(title) == shown


def test_a_title_without_a_year_has_none(raw: dict[str, bytes]) -> None:
    titles = read_titles(raw["item"])
    assert titles[7] == 'The "7th" Film'
    assert titles[8].endswith(")")
