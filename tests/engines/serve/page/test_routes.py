import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from engines.bundle.fixture_file import Fixture, Fixtures, save_fixtures
from engines.serve.core.model_slot import ModelSlot
from engines.serve.page.routes import STATIC, page_routes
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve.page.page_server import PageServer, page_server


@pytest.fixture(scope="module")
def server(built_bundle: Path) -> PageServer:
    return page_server(built_bundle)


@pytest.fixture(scope="module")
def client(server: PageServer) -> TestClient:
    return TestClient(server.app())


FILES = ["/", *(f"/page/{path.name}" for path in sorted(STATIC.iterdir()))]


@pytest.mark.parametrize("path", [*FILES, "/examples.json", "/examples/0.json", "/page/none", "/examples/99999.json"])
def test_every_answer_forbids_what_the_page_does_not_need(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "*" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", [*FILES, "/examples.json", "/examples/0.json"])
def test_what_did_not_change_is_not_sent_again(client: TestClient, path: str) -> None:
    first = client.get(path)
    assert first.status_code == 200
    again = client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head(path).status_code == 200


class Markup(HTMLParser):
    """The addresses of a page, and its inline scripts, styles and handlers."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [given[name] or "" for name in ("src", "href") if name in given]
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []
        self.ids.add(given.get("id") or "")


def test_the_page_needs_only_its_own_files(client: TestClient) -> None:
    markup = Markup()
    markup.feed(client.get("/").text)
    assert markup.inline == []
    assert {a for a in markup.addresses if "/" in a} <= {path.removeprefix("/") for path in FILES}
    for path in STATIC.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            path
        )
        used = set(re.findall(r'byId\("([a-z-]+)"\)|panel\("([a-z-]+)"', text))
        assert {a or b for a, b in used} <= markup.ids | {"tasks"}, path


@pytest.mark.parametrize("path", ["/page/routes.py", "/page/..%2froutes.py", "/page/%2e%2e/routes.py", "/page/"])
def test_other_files_are_not_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_bodies_follow_the_listing(client: TestClient, server: PageServer) -> None:
    listed = client.get("/examples.json").json()
    assert listed["version"] == server.slot.current().version
    for shown in listed["requests"]:
        answer = client.post(f"/{listed['infer']}", content=client.get(f"/{shown['body']}").content).json()
        (scores,) = [np.float32(o["data"]) for o in answer["outputs"]]
        assert np.abs(scores - np.float32(shown["expected"]["like"])).max() <= listed["tolerances"]["like"]
    assert client.get(f"/examples/{len(listed['requests'])}.json").status_code == 404
    for number in ("-1", "00", "\u0662", "9" * 5000):  # the last is longer than any number that Python reads
        assert client.get(f"/examples/{number}.json").status_code == 404


def test_before_a_bundle_is_loaded_the_page_is_there_without_requests(server: PageServer) -> None:
    early = PageServer(server.settings, ModelSlot(), {})
    client = TestClient(early.app())
    assert client.get("/").status_code == 200
    refused = client.get("/examples.json")
    assert refused.status_code == 503
    assert "no bundle" in refused.json()["error"]


def test_examples_that_do_not_fit_stop_the_start(built_bundle: Path, tmp_path: Path) -> None:
    user, items = tiny.user_and_items(3)
    del items["genres"]
    save_fixtures(tmp_path, "examples", Fixtures((Fixture("one", user, items),)))
    with pytest.raises(UgsepError, match="genres"):
        Starlette(routes=page_routes(page_server(built_bundle, tmp_path)))


def test_the_wheel_has_the_files_of_the_page() -> None:
    package = STATIC.parents[2]
    settings = tomllib.loads((package.parent / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["engines"]
    assert all(any(path.relative_to(package).match(p) for p in patterns) for path in STATIC.iterdir())
