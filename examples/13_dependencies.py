"""
Dependencies before every model or before one of them, and a middleware of your own.

    API_KEY=secret mlserve run 13_dependencies:server
    curl --json 3 -H 'X-API-Key: secret' http://127.0.0.1:8000/v1/models/double/predict
"""

import os
import secrets
import sys
from typing import Annotated

import httpx2
from fastapi import Depends, Header, HTTPException, Security
from fastapi.security import APIKeyHeader
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlserve import ModelHandler, ModelServer
from mlserve.testing import running

KEY = os.environ.get("API_KEY") or secrets.token_urlsafe()  # not set: nobody gets in
scheme = APIKeyHeader(name="X-API-Key", auto_error=False)  # gives /docs its "Authorize" button


async def require_key(key: Annotated[str | None, Security(scheme)]) -> None:
    if key is None or not secrets.compare_digest(key.encode(), KEY.encode()):
        raise HTTPException(401, "The header `X-API-Key` is missing or wrong.")


async def require_beta(x_beta: Annotated[bool, Header()] = False) -> None:
    if not x_beta:
        raise HTTPException(403, "Send `X-Beta: true` to try this model.")


class Powered:  # plain ASGI: answers pass as they come, streams too
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-powered-by", b"mlserve")]
            await send(message)

        await self.app(scope, receive, send_more)


class Double(ModelHandler[float, float]):
    def infer(self, inputs: list[float]) -> list[float]:
        return [2 * value for value in inputs]


# The key is asked for on every route of mlserve's but /health, /ready and /docs.
server = ModelServer(dependencies=[Depends(require_key)], middleware=[Middleware(Powered)])
server.add("double", Double).add("beta", Double, dependencies=[Depends(require_beta)])


def check(client: httpx2.Client) -> None:
    def ask(name: str, **headers: str) -> httpx2.Response:
        answer = client.post(f"/v1/models/{name}/predict", json=3, headers=headers)
        print(name, list(headers), answer.status_code, answer.json())
        return answer

    assert ask("double").json()["error"]["code"] == "unauthorized"
    key = {"X-API-Key": KEY}
    assert ask("double", **key).json() == 6
    assert ask("beta", **key).status_code == 403
    assert ask("beta", **key, **{"X-Beta": "true"}).headers["x-powered-by"] == "mlserve"
    open_and_guarded = [client.get(path).status_code for path in ("/ready", "/v1/models")]
    assert open_and_guarded == [200, 401]


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
