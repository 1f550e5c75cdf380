"""What our own guards have in common."""

from abc import ABC, abstractmethod

from starlette.requests import Request
from starlette.types import Scope

__all__ = ["OwnGuard", "QuickGuard"]


class OwnGuard(ABC):
    """
    A dependency that needs nothing of FastAPI but its place in a route's signature.

    A route that has no other ones is reached past FastAPI's stack, and calls them itself.
    """

    @abstractmethod
    async def let_pass(self, request: Request) -> None:
        """
        Let a request pass.

        Raises:
            HTTPException: Why it may not.
        """


class QuickGuard(OwnGuard):
    """A guard that never has to wait, so that a request needs no task for it."""

    @abstractmethod
    def let_pass_at_once(self, scope: Scope) -> object:
        """
        Let a request pass, by its scope alone.

        Raises:
            HTTPException: Why it may not.
        """

    async def let_pass(self, request: Request) -> None:
        """Let a request pass, as `let_pass_at_once` does."""
        self.let_pass_at_once(request.scope)
