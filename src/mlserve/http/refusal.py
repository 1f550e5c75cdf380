"""What is refused before the application sees it: the checks of a head, the bytes of the answer."""

from operator import itemgetter

from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from mlserve.errors import DrainingError
from mlserve.http.errors import error_body
from mlserve.http.exchange import request_id_of
from mlserve.observability.loggers import get_logger

__all__ = ["bad_request", "refusal", "require_one_meaning"]

logger = get_logger(__name__)

_name_of = itemgetter(0)


def bad_request() -> HTTPException:
    """Give the error of what is no HTTP."""
    return HTTPException(400, "The request is not valid HTTP.")


def require_one_meaning(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    """
    Refuse heads that another server in between might read as another request.

    Source:
        RFC 9112, sections 3.2 (Host) and 6.1 (Transfer-Encoding).
    """
    if version not in ("1.0", "1.1"):
        raise bad_request()
    names = list(map(_name_of, headers))
    n_hosts = names.count(b"host")
    if n_hosts > 1 or (n_hosts == 0 and version == "1.1"):
        raise HTTPException(400, "The request must have exactly one `Host`.")
    if b"transfer-encoding" not in names:
        return
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    if version != "1.1" or len(encodings) > 1 or encodings[0].strip().lower() != b"chunked":
        raise HTTPException(400, "`Transfer-Encoding` must be `chunked`, once.")
    if b"content-length" in names:
        raise HTTPException(400, "`Transfer-Encoding` excludes `Content-Length`.")


def refusal(error: HTTPException | DrainingError, request_id_header: str) -> bytes:
    """Write a whole answer, and note it in the log."""
    request_id = request_id_of({"type": "http", "headers": []})
    logger.info("request.head.refused", extra={"request_id": request_id})
    body = error_body(error, request_id)
    status, retry = DrainingError.status, "retry-after: 1\r\n"
    if isinstance(error, HTTPException):
        status, retry = error.status_code, ""
    head = (
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"{request_id_header.lower()}: {request_id}\r\n{retry}connection: close\r\n\r\n"
    )
    return STATUS_LINE[status] + head.encode() + body
