"""A small invented data set in the shape of ML-100K's tables: the text of .inter, .user and .item."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from examples.movielens.data.download import MEMBER
from examples.movielens.data.tables import GENRES, Items, Ratings, Users, read_items, read_ratings, read_users

USERS, ITEMS, DAYS, FIRST_SECOND = 12, 30, 20, 875_000_000


def texts(seed: int = 0, events: int = 240) -> dict[str, bytes]:
    """Every pair of user and item at most once; times collide on purpose."""
    draw = np.random.default_rng(seed)
    pairs = draw.choice(USERS * ITEMS, size=events, replace=False)
    # People come on few days, as in the real data, so that requests have several rows.
    day = draw.integers(0, DAYS, size=(USERS, 3))[pairs // ITEMS, draw.integers(0, 3, events)]
    seconds = FIRST_SECOND + day * 86_400 + draw.integers(0, 40, events)
    inter = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    # Even items are liked more, so that there is something to learn.
    stars = np.clip(draw.integers(1, 6, events) + np.where(pairs % ITEMS % 2, 2, -1), 1, 5)
    inter += [f"{p // ITEMS + 1}\t{p % ITEMS + 1}\t{r}\t{s}" for p, r, s in zip(pairs, stars, seconds, strict=True)]
    user = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    for u in range(1, USERS + 1):
        job, zip_code = ("writer", "other", "juggler")[u % 3], ("94043", "V3N4P")[u % 2]
        user.append(f"{u}\t{draw.integers(7, 74)}\t{'MF'[u % 2]}\t{job}\t{zip_code}")
    item = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for i in range(1, ITEMS + 1):
        names = " ".join(GENRES[g] for g in draw.choice(len(GENRES), size=1 + i % 3, replace=False))
        item.append(f'{i}\tThe "{i}th" Film\t{draw.integers(1925, 1999) if i % 7 else "unkonwn"}\t{names}')
    rows = {"inter": inter, "user": user, "item": item}
    return {name: ("\n".join(lines) + "\n").encode() for name, lines in rows.items()}


@pytest.fixture
def raw() -> dict[str, bytes]:
    return texts()


@pytest.fixture
def tables(raw: dict[str, bytes]) -> tuple[Ratings, Users, Items]:
    return read_ratings(raw["inter"]), read_users(raw["user"]), read_items(raw["item"])


@pytest.fixture
def write_wheel() -> Callable[..., Path]:
    """Write a wheel with nothing but the tables."""

    def write(path: Path, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in texts(seed).items():
                archive.writestr(f"{MEMBER}.{name}", text)
        return path

    return write
