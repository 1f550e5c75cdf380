"""The playground's page as it is served; what it does is tried in a browser elsewhere."""

import base64
import hashlib
import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from mlserve import ModelServer, ServerSettings
from mlserve.testing import EchoHandler


def page_of(app: Any, path: str = "/playground") -> str:
    with TestClient(app) as client:
        answer = client.get(path)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.text


def test_the_title_cannot_bring_markup_into_the_page() -> None:
    title = "<script>alert(1)</script> & {{prefix}}"

    page = page_of(ModelServer(title=title).add("echo", EchoHandler).build())

    assert "<script>alert" not in page
    assert "<h1>&lt;script&gt;alert(1)&lt;/script&gt; &amp; {{prefix}} <span>" in page


def test_the_page_names_nothing_that_is_loaded_from_elsewhere() -> None:
    page = page_of(ModelServer().add("echo", EchoHandler).build())

    assert not re.search(r"""(src|href)=["']?(https?:|//)|@import|url\(""", page)
    assert "<script src" not in page
    assert "innerHTML" not in page


def test_the_browser_is_told_to_run_the_pages_own_script_only() -> None:
    with TestClient(ModelServer().add("echo", EchoHandler).build()) as client:
        answer = client.get("/playground")

    policy = answer.headers["content-security-policy"]
    [script] = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "connect-src 'self'" in policy


@pytest.mark.parametrize("prefix", ["", "/ml"])
def test_the_page_knows_its_prefix_and_every_version(prefix: str) -> None:
    server = ModelServer().add("echo", EchoHandler, version="v3").add("echo", EchoHandler)
    app = FastAPI()
    server.install(app, prefix)

    page = page_of(app, f"{prefix}/playground")

    assert f'data-prefix="{prefix}" data-versions="v1 v3"' in page


def test_a_server_that_hides_its_docs_has_no_playground() -> None:
    settings = ServerSettings(expose_docs=False)
    server = ModelServer(settings=settings).add("echo", EchoHandler)

    with TestClient(server.build()) as client:
        answer = client.get("/playground")

    assert answer.status_code == 404
