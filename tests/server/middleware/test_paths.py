from __future__ import annotations

from pathlib import Path

import pytest
import vllm

from metok_vllm.server.middleware import paths
from metok_vllm.server.middleware.paths import is_work
from tests.server.http_servers import http_scope


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions/batch",
        "/v1/chat/completions/render",
        "/v1/messages/count_tokens",
        "/cohere/v2/chat",
        "/tokenize",
        "/invocations",
        "/a/route/of/tomorrow",
    ],
)
def test_everything_that_is_posted_is_work(path: str) -> None:
    assert is_work(http_scope(path))
    assert is_work(http_scope("/prefix" + path, root_path="/prefix"))
    assert not is_work(http_scope(path, method="OPTIONS"))
    assert not is_work(http_scope(path, method="GET"))


@pytest.mark.parametrize(
    "path", ["/ping", "/v1/responses/resp_1/cancel", "/inference/v1/abort_requests", "/wake_up/"]
)
def test_except_what_steers_the_server(path: str) -> None:
    assert not is_work(http_scope(path))
    assert not is_work(http_scope("/prefix" + path, root_path="/prefix"))


@pytest.mark.parametrize("root", ["/", "/v", "/v1/chat"])
def test_a_root_path_takes_nothing_else_away(root: str) -> None:
    assert paths.route_path(http_scope("/v1/completions", root_path=root)) == "/v1/completions"


def test_the_control_routes_are_routes_of_vllm() -> None:
    """A path that vLLM does not have would be a hole that nobody sees."""
    package = Path(vllm.__file__).parent / "entrypoints"
    source = "\n".join(path.read_text() for path in package.rglob("api_router.py"))
    assert {path for path in paths.CONTROL_PATHS if f'"{path}"' not in source} == set()
    assert '"/v1/responses/{response_id}/cancel"' in source
