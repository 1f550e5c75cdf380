"""What our own guards have in common."""

from abc import ABC, abstractmethod
from typing import ClassVar

from starlette.requests import Request

__all__ = ["OwnGuard"]


class OwnGuard(ABC):
    """
    A dependency that needs nothing of FastAPI but its place in a route's signature.

    A route that has no other ones is reached past FastAPI's stack, and calls them itself.
    """

    is_quick: ClassVar[bool] = False
    """Whether it never has to wait, so that `let_pass_at_once` will do."""

    @abstractmethod
    async def let_pass(self, request: Request) -> None:
        """
        Let a request pass.

        Raises:
            HTTPException: Why it may not.
        """

    def let_pass_at_once(self, request: Request) -> None:
        """Let a request pass as `let_pass` does; for those that are quick."""
        raise NotImplementedError
