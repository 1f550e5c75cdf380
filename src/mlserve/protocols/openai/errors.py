"""
What the protocol says of errors: the shape of OpenAI's, and whether the client should repeat.

Source: openai 3.57 `_base_client.py`: the client repeats 408, 409, 429 and every 5xx twice unless
the header `x-should-retry` says otherwise, and waits as `Retry-After` says.
"""

from dataclasses import replace

from mlserve.http.errors import Failure

__all__ = ["openai_shape"]

_PASSING = frozenset({408, 409, 429, 503, 504})
"""Statuses of failures that the same request need not meet again."""
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def openai_shape(failure: Failure) -> Failure:
    """Say of an error what OpenAI's clients expect. Pure."""
    status = 400 if failure.status == 422 else failure.status
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    headers = failure.headers
    if (status not in _PASSING and failure.retry_after_s is None) or status == 502:
        headers = {**headers, "x-should-retry": "false"}
    return replace(failure, status=status, kind=kind, headers=headers)
