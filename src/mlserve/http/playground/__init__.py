"""The playground: a page to try each model on, with nothing loaded from elsewhere."""

import base64
import hashlib
from collections.abc import Callable, Iterable
from html import escape
from importlib.resources import files
from typing import Any

from starlette.responses import HTMLResponse

__all__ = ["make_playground"]


def make_playground(
    title: str, *, prefix: str = "", versions: Iterable[str] = ("v1",)
) -> Callable[..., Any]:
    """
    Make the endpoint of `GET /playground`; the page asks `v1/models` and so on for the rest.

    The browser is told to load nothing from elsewhere and to run no script but the page's own.

    Args:
        title: The application's title.
        prefix: What stands before every path.
        versions: Those in use; the page lists the models of each.
    """
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0]
    page = page.replace("{{prefix}}", escape(prefix))
    page = page.replace("{{versions}}", escape(" ".join(versions)))
    page = page.replace("{{title}}", escape(title))
    headers = {"Content-Security-Policy": _policy(script), "X-Content-Type-Options": "nosniff"}

    async def playground() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    return playground


def _policy(script: str) -> str:
    """
    Give what the page may do.

    Source:
        W3C Content Security Policy Level 3; the script is named by its SHA-256.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'sha256-{digest}'",
            "style-src 'unsafe-inline'",
            "connect-src 'self'",
            "img-src data: blob:",
            "media-src blob:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'self'",
        )
    )
