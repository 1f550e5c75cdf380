"""
A model's own dependencies on a route that several models share.

Which model a request is for is known once its body is read; only then can FastAPI be asked to
solve what the user has put before that model.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Depends
from fastapi.params import Depends as Dependency
from fastapi.routing import APIRoute, get_request_handler
from starlette.requests import Request
from starlette.responses import Response

from mlserve.http.route import Answer

__all__ = ["NOTHING", "Guard"]


async def _nothing() -> None:
    """Ask nothing: what a route depends on that has to be behind FastAPI's stack."""


NOTHING: Dependency = Depends(_nothing)
"""A dependency that asks nothing."""


class Guard:
    """
    Solves the dependencies of one model for requests whose body is read already.

    Args:
        dependencies: The model's own.
        overrides_provider: The application, which may override them.
    """

    def __init__(self, dependencies: Sequence[Dependency], overrides_provider: Any) -> None:
        self._provider = overrides_provider
        self._dependant = None
        if dependencies:
            self._dependant = APIRoute("/", _nothing, dependencies=dependencies).dependant

    async def __call__(self, request: Request, answer: Answer) -> Response:
        """
        Answer a request if the dependencies let it pass.

        Args:
            request: The request.
            answer: A coroutine function that answers it.

        Raises:
            HTTPException: What a dependency raised.
        """
        if self._dependant is None:
            return await answer(request)
        dependant = replace(self._dependant, call=answer, request_param_name="request")
        handle = get_request_handler(dependant, dependency_overrides_provider=self._provider)
        return await handle(request)
