from __future__ import annotations

import re

import pytest
from fastapi import FastAPI

from metok_vllm.server.api import pages
from metok_vllm.server.middleware.access import PAGE_PATHS
from tests.server.api.apps import call

DIRECTIVES = ("default-src", "base-uri", "form-action", "frame-ancestors")


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    pages.attach(app)
    return app


def directives(policy: str) -> dict[str, str]:
    pairs = (part.strip().partition(" ") for part in policy.split(";"))
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize("path", ["/", "/docs", "/page/page.js", "/page/swagger-ui-bundle.js"])
def test_headers(app: FastAPI, path: str) -> None:
    response = call(app, "GET", path)
    assert response.status_code == 200
    policy = directives(response.headers["content-security-policy"])
    assert [policy[name] for name in DIRECTIVES] == ["'none'"] * len(DIRECTIVES)
    assert policy["script-src"] == "'self'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_our_files_and_no_others(app: FastAPI, path: str) -> None:
    html = call(app, "GET", path).text
    sources = [s for s in re.findall(r'(?:src|href)="([^"]+)"', html) if s != "data:,"]
    assert sources
    for source in sources:
        assert source.startswith("page/"), "another host, or broken by a root path"
        response = call(app, "GET", f"/{source}")
        assert response.status_code == 200
        kind = "css" if source.endswith("css") else "javascript"
        assert response.headers["content-type"] == f"text/{kind}; charset=utf-8"
    # The policy forbids inline styles and scripts.
    assert not re.search(r"<style|<script>|\son\w+=|style=", html)


def test_files_of_the_page_need_no_key(app: FastAPI) -> None:
    html = call(app, "GET", "/").text
    sources = {f"/{s}" for s in re.findall(r'(?:src|href)="(page/[^"]+)"', html)}
    assert {"/", *sources} == PAGE_PATHS


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect", "/page/nothing"])
def test_other_paths_are_404(app: FastAPI, path: str) -> None:
    assert call(app, "GET", path).status_code == 404


def test_docs_can_be_switched_off() -> None:
    app = FastAPI(openapi_url=None)
    pages.attach(app)
    assert call(app, "GET", "/docs").status_code == 404
