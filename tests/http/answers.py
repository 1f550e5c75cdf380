"""What the tests of the HTTP layer expect of every error answer, in one place."""

from typing import Any

import httpx2

MAX_BYTES = 4096
MEMBERS = {"code", "type", "message", "request_id", "retry_after_s", "param"}


def error_of(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Give the error of an answer that has the one shape of all errors."""
    assert (answer.status_code, answer.text[:20]) == (status, '{"error": {"code": "'), answer.text
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.content) <= MAX_BYTES
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == MEMBERS
    assert error["code"] == code
    assert error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]
    if error["retry_after_s"] is not None:
        assert int(answer.headers["retry-after"]) >= error["retry_after_s"]
    return error


def events_of(answer: httpx2.Response) -> list[str]:
    """Give the data of each event of a well-formed stream."""
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("\n\n")
    blocks = [block for block in answer.text.split("\n\n") if block and block[0] != ":"]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]
