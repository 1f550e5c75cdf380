"""Reading multipart forms to their end: one that does not end is refused, not taken as it is."""

from collections.abc import AsyncGenerator

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

__all__ = ["parse_form"]


async def parse_form(request: Request, max_parts: int) -> FormData:
    """
    Read a multipart form.

    Args:
        request: Its body has not been read, unless by a dependency that took it as a form.
        max_parts: How many files, and how many other fields, it may have.

    Returns:
        What must be closed: large files are on the disk.

    Raises:
        HTTPException: 400, if it is no multipart form, or a form of too many parts.
    """
    parsed: FormData | None = request._form  # noqa: SLF001 - Starlette's own place for it
    if parsed is not None:
        return parsed
    try:
        return await _WholeForm(request, max_parts).parse()
    except MultiPartException as exc:
        raise HTTPException(400, exc.message) from None


class _WholeForm(MultiPartParser):
    """Starlette's parser, which by itself leaves out a last part that does not end."""

    def __init__(self, request: Request, max_parts: int) -> None:
        stream = self._require_end(request.stream())
        super().__init__(request.headers, stream, max_files=max_parts, max_fields=max_parts)
        self._has_ended = False

    def on_end(self) -> None:
        """Note the boundary that ends the form."""
        self._has_ended = True

    async def _require_end(
        self, stream: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._has_ended:
            raise MultiPartException("The form does not end with its boundary.")
