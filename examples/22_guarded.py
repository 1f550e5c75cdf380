"""
A server for clients with API keys: limits for each of them, a quota of tokens, a feature flag.

    MLSERVE_API_KEYS=shop=a-key-of-our-web-shop python 22_guarded.py
    curl --json '"I love it"' -H 'X-API-Key: a-key-of-our-web-shop' \
        http://127.0.0.1:8000/v1/models/words/predict
    # mlserve keys new --name shop: makes a key, and the entry to configure in its place
"""

import sys
from typing import Annotated

import httpx2
from fastapi import Depends

from mlserve import (
    Call,
    ModelHandler,
    ModelServer,
    ServerSettings,
    api_keys,
    feature_flag,
    rate_limit,
    require_flag,
)
from mlserve.testing import running

KEY, OTHER = "a-key-of-our-web-shop", "a-key-of-the-mobile-app"
IS_CHECK = "--check" in sys.argv
keys = api_keys([f"shop={KEY}", f"app={OTHER}"] if IS_CHECK else None)


class Words(ModelHandler[str, int]):
    def infer(self, inputs: list[str], calls: list[Call]) -> list[int]:
        counts = [len(text.split()) for text in inputs]
        for n, call in zip(counts, calls, strict=True):
            call.annotate(prompt_tokens=n)  # what the quota charges
        return counts


# Every route but /health and /ready asks for a key; who has one may ask a hundred times a minute.
server = ModelServer(
    dependencies=[Depends(keys), Depends(rate_limit("100/minute"))],
    settings=ServerSettings(flags={"next": False, "greeting": "50%"}),
)
server.add("words", Words, dependencies=[Depends(rate_limit("10/day", cost="tokens"))])
server.add("next", Words, dependencies=[Depends(require_flag("next"))])
app = server.build()


@app.get("/me")
async def me(
    name: Annotated[str, Depends(keys)], has_new: Annotated[bool, Depends(feature_flag("greeting"))]
) -> str:
    return f"{'Hi' if has_new else 'Good morning'}, {name}!"


def check(client: httpx2.Client) -> None:
    def ask(model: str, text: str, key: str = KEY) -> httpx2.Response:
        path = f"/v1/models/{model}/predict"
        answer = client.post(path, json=text, headers={"X-API-Key": key})
        print(model, answer.status_code, answer.headers.get_list("RateLimit"), answer.text)
        return answer

    assert ask("words", "hello", "a-key-that-is-wrong").status_code == 401
    assert [ask("words", "one two three four five six").status_code for _ in range(3)][2] == 429
    assert ask("words", "a caller of its own", OTHER).json() == 5
    assert ask("next", "off").status_code == 404
    server.flags.set("next", True)
    assert ask("next", "now on").json() == 2
    print(client.get("/me", headers={"Authorization": f"Bearer {KEY}"}).json())


if __name__ == "__main__":
    if IS_CHECK:
        with running(app) as client:
            check(client)
    else:
        server.run()
