"""The page's files; what it does in a browser is tested with one (tests/page)."""

import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest

from http_support import Served

PAGE = files("quire_router") / "page"
FILES = sorted(file.name for file in PAGE.iterdir())


def path_of(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


async def test_every_file_comes_with_a_strict_policy(served: Served) -> None:
    for name in FILES:
        async with served.http.get(served.url + path_of(name)) as response:
            assert response.status == 200
            assert await response.read() == (PAGE / name).read_bytes()
            headers = response.headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "require-trusted-types-for 'script'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


async def test_a_file_that_the_browser_has_is_not_sent_again(served: Served) -> None:
    url = served.url + "/page/main.js"
    async with served.http.get(url) as response:
        etag = response.headers["etag"]

    async with served.http.get(url, headers={"if-none-match": etag}) as response:
        assert response.status == 304
        assert await response.read() == b""
        assert response.headers["etag"] == etag


async def test_head_answers_without_a_body(served: Served) -> None:
    async with served.http.head(served.url + "/") as response:
        assert response.status == 200
        assert int(response.headers["content-length"]) == len((PAGE / "index.html").read_bytes())


async def test_no_page_leaves_none_of_it(serve_with: Any) -> None:
    served = await serve_with(page=False)

    statuses = [(await served.get(path_of(name)))[0] for name in FILES]

    assert statuses == [404] * len(FILES)
    assert (await served.get("/v1/replicas"))[0] == 200


async def test_the_page_needs_no_key_and_its_data_does(serve_with: Any) -> None:
    served = await serve_with(api_keys=("k",))

    assert (await served.get("/"))[0] == 200
    assert (await served.get("/page/main.js"))[0] == 200
    assert (await served.get("/v1/replicas"))[0] == 401


async def test_nothing_but_the_files_is_there(served: Served) -> None:
    for path in ("/page/", "/page/other.js", "/page/%2e%2e/config.py", "/page//etc/passwd"):
        assert (await served.get(path))[0] == 404, path


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_loaded_from_elsewhere(name: str) -> None:
    text = (PAGE / name).read_text()

    addresses = set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"'`]*", text))

    assert addresses <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_no_script_turns_text_into_markup(name: str) -> None:
    text = (PAGE / name).read_text()

    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


def test_the_page_has_neither_inline_scripts_nor_styles() -> None:
    class Inline(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names = {name for name, _ in attrs}
            if tag == "style" or (tag == "script" and "src" not in names):
                self.found.append(tag)
            self.found += [name for name in names if name == "style" or name.startswith("on")]

    parser = Inline()
    parser.feed((PAGE / "index.html").read_text())

    assert parser.found == []
