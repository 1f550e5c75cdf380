"""The playground: a page to try each model on, with nothing loaded from elsewhere."""

from collections.abc import Callable
from html import escape
from importlib.resources import files
from typing import Any

from starlette.responses import HTMLResponse

__all__ = ["make_playground"]


def make_playground(title: str) -> Callable[..., Any]:
    """Make the endpoint of `GET /playground`; the page asks `v1/models` for the rest."""
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace("{{title}}", escape(title))

    async def playground() -> HTMLResponse:
        return HTMLResponse(page)

    return playground
