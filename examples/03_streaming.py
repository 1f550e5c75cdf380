"""
Streaming: a model that answers token by token, as server-sent events.

    mlserve run 03_streaming:server              (then open http://127.0.0.1:8000/)
    curl -N --json '{"prompt": "the cat"}' http://127.0.0.1:8000/v1/models/story/stream

A browser's `EventSource` can only GET, so requests of plain fields may be streamed by GET too.
"""

import itertools
import sys
import threading
import time
from collections.abc import Iterator

import httpx2
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from mlserve import ModelHandler, ModelServer
from mlserve.testing import running

closed = threading.Event()  # only for the check: the generator was closed


class Prompt(BaseModel):
    prompt: str
    max_tokens: int = Field(default=20, ge=1, le=100_000)


class Story(ModelHandler[Prompt, str]):
    def examples(self) -> list[Prompt]:
        return [Prompt(prompt="the cat")]

    def stream(self, prompt: Prompt) -> Iterator[str]:  # in a thread of its own
        words = itertools.cycle([*prompt.prompt.split(), "and"])
        try:
            for word in itertools.islice(words, prompt.max_tokens):
                time.sleep(0.01)  # stands for a step of the model
                yield word
        finally:  # the end, or the client has left: the generator is closed at its `yield`
            closed.set()


server = ModelServer(title="Stories").add("story", Story)
app = server.build()

# Without `close()` the browser would connect again after [DONE] and generate everything anew.
PAGE = """<!doctype html><title>Story</title><p id="story"></p><script>
const source = new EventSource("/v1/models/story/stream?prompt=the+cat");
source.onmessage = ({data}) => {
  if (data === "[DONE]") return source.close();
  story.append(JSON.parse(data) + " ");
};</script>"""


@app.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> str:
    return PAGE


def check(client: httpx2.Client) -> None:
    url = "/v1/models/story/stream"
    answer = client.get(url, params={"prompt": "the cat", "max_tokens": 3})
    print(answer.text)
    assert answer.text.endswith('data: "and"\n\ndata: [DONE]\n\n')

    closed.clear()
    with client.stream("POST", url, json={"prompt": "on", "max_tokens": 100_000}) as answer:
        print(next(answer.iter_lines()), "… and the client leaves")
    assert closed.wait(timeout=10)  # nobody listens: 100,000 tokens are not generated


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
