"""Async handlers as users write them: they must pass a strict type checker as they stand."""

import asyncio
from collections.abc import AsyncIterator, Hashable

from pydantic import BaseModel

from mlserve import Call, ModelHandler

__all__ = ["Remote", "RemoteWithCall"]


class Prompt(BaseModel):
    text: str


class Completion(BaseModel):
    text: str


class Remote(ModelHandler[Prompt, Completion]):
    """Every hook, without `call`."""

    async def load(self) -> None:
        self.ready = asyncio.Event()
        self.ready.set()

    async def warmup(self) -> None:
        await self.ready.wait()

    async def examples(self) -> list[Prompt]:
        return [Prompt(text="hello")]

    async def preprocess(self, request: Prompt) -> str:
        return request.text

    async def cost(self, item: str) -> int:
        return len(item)

    async def batch_key(self, item: str) -> Hashable:
        return item[:1]

    async def infer(self, inputs: list[str]) -> list[str]:
        return [item.upper() for item in inputs]

    async def postprocess(self, output: str) -> Completion:
        return Completion(text=output)

    async def stream(self, item: str) -> AsyncIterator[Completion]:
        for word in item.split():
            yield Completion(text=word)

    async def unload(self) -> None:
        self.ready.clear()

    async def health(self) -> None:
        await self.ready.wait()


class RemoteWithCall(ModelHandler[Prompt, Completion, str]):
    """Every hook that may take the call, with it, and chunks of their own type."""

    async def preprocess(self, request: Prompt, call: Call) -> str:
        call.annotate(n_characters=len(request.text))
        return request.text

    async def cost(self, item: str, call: Call) -> int:
        return len(item)

    async def batch_key(self, item: str, call: Call) -> str:
        return call.request_id

    async def infer(self, inputs: list[str], calls: list[Call]) -> list[str | Exception]:
        return [
            TimeoutError() if call.cancelled else item
            for item, call in zip(inputs, calls, strict=True)
        ]

    async def postprocess(self, output: str, call: Call) -> Completion:
        return Completion(text=output)

    async def stream(self, item: str, call: Call) -> AsyncIterator[str]:
        for word in item.split():
            if not call.cancelled:
                yield word
