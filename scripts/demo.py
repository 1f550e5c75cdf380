"""
A tour of a running server: it loads real models, answers on every route, shows what came back.

On a terminal, or with `--keep`, the server then runs until Ctrl+C; elsewhere the tour ends it.
"""

import argparse
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import openai

SCRIPTS = Path(__file__).resolve().parent
START_S = 180
POLL_S = 0.05
MINILM = "/v1/models/minilm/predict"
SENTENCES = {
    "cat": "The cat is asleep on the sofa.",
    "kitten": "A kitten naps on the couch.",
    "shares": "Shares fell sharply this afternoon.",
    "market": "The stock market lost a lot of value today.",
    "password": "How do I reset my password?",
    "login": "I cannot log in to my account any more.",
}

QUESTIONS = ("What is the capital of France?", "What colour is the sky?", "What is 2 plus 2?")
RAINBOW = "The colours of the rainbow are"
NEWS = "At 41, Anna Schmidt has just opened her third bookshop in Berlin."
PERSON: Any = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"type": "string", "maxLength": 40},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


FAILURES = (DemoError, httpx2.HTTPError, openai.OpenAIError)


def heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def tell(answer: httpx2.Response, text: str) -> None:
    call = f"{answer.request.method:4} {answer.request.url.path}"
    time_ms = 1000 * answer.elapsed.total_seconds()
    print(f"  {call:31} {answer.status_code} {time_ms:6.1f} ms  {text}", flush=True)


def checked(answer: httpx2.Response, status: int = 200) -> httpx2.Response:
    if answer.status_code != status:
        call = f"{answer.request.method} {answer.request.url.path}"
        raise DemoError(f"{call} answered {answer.status_code}, not {status}: {answer.text[:300]}")
    return answer


def free_port() -> int:
    """Give 8000 if it is free, else any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8000))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server in a process of its own; the end of its log is shown if the demo fails."""
    command = [sys.executable, "-m", "mlserve", "run", "demo_server:server", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}  # the model comes from a package
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, cwd=SCRIPTS, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        except FAILURES:
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()[-8:]
            print("\nThe server's log ends with:", *lines, sep="\n  ", file=sys.stderr)
            raise
        finally:
            process.terminate()


def wait_until_ready(client: httpx2.Client, process: subprocess.Popen[bytes]) -> None:
    """Show `/ready` each time that it says something new, until all models are loaded."""
    started, before = time.monotonic(), ""
    while (elapsed_s := time.monotonic() - started) < START_S:
        if process.poll() is not None:
            raise DemoError(f"the server ended with {process.returncode} while it started.")
        with suppress(httpx2.TransportError):  # it does not listen yet
            ready = client.get("/ready")
            models = ready.json()["models"]
            now = ", ".join(f"{m['name']} {m['state']} {m['progress']:.0%}" for m in models)
            if now != before:
                tell(ready, f"after {elapsed_s:.1f} s: {now}")
            if ready.status_code == httpx2.codes.OK:
                return
            before = now
        time.sleep(POLL_S)
    raise DemoError(f"the models were not ready within {START_S} s.")


def show_routes(client: httpx2.Client) -> None:
    answer = checked(client.get("/health"))
    tell(answer, answer.text)
    answer = checked(client.get("/v1/models"))
    tell(answer, ", ".join(f"{model['id']} {model['version']}" for model in answer.json()["data"]))
    answer = checked(client.get("/v1/models/minilm"))
    tell(answer, f"{answer.json()['state']}, replicas: {answer.json()['statistics']['replicas']}")
    for path in ("/openapi.json", "/docs", "/playground"):
        answer = checked(client.get(path))
        tell(answer, f"{answer.headers['content-type']}, {len(answer.content)} bytes")


def embed(client: httpx2.Client, text: str) -> Any:
    return checked(client.post(MINILM, json={"text": text})).json()["embedding"]


def show_embeddings(client: httpx2.Client) -> None:
    answer = client.post(MINILM, json={"text": SENTENCES["cat"]})
    alias = client.post("/models/minilm/predict", json={"text": SENTENCES["cat"]})
    for each in (answer, alias):
        vector = checked(each).json()["embedding"]
        tell(each, f"{[round(value, 4) for value in vector[:4]]} … {len(vector)} numbers")
    print(f"  Server-Timing of the last one: {alias.headers['server-timing']}")


def show_similarities(client: httpx2.Client) -> None:
    vectors = {name: embed(client, text) for name, text in SENTENCES.items()}
    print(" " * 10 + "".join(f"{name:>9}" for name in vectors))
    for name, vector in vectors.items():
        products = (sum(map(float.__mul__, vector, other)) for other in vectors.values())
        row = "".join(f"{product:9.2f}" for product in products)
        print(f"  {name:8}{row}   {SENTENCES[name]}")


def show_batching(client: httpx2.Client, n_texts: int = 120) -> None:
    texts = [f"{text} {number}" for number in range(n_texts // 6) for text in SENTENCES.values()]
    started = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda text: embed(client, text), texts))
    elapsed_s = time.monotonic() - started
    size = checked(client.get("/v1/models/minilm")).json()["statistics"]["mean_batch_size"]
    print(f"  {len(texts)} texts from 16 clients in {elapsed_s:.2f} s,", end=" ")
    print(f"{len(texts) / elapsed_s:.0f} a second; {size:.1f} to a batch since the start")


def print_pieces(pieces: Iterable[str], started: float) -> None:
    """Print the pieces of a text as they come, then how many there were and when."""
    times_s = []
    print(end="    ")
    for piece in pieces:
        times_s.append(time.monotonic() - started)
        print(piece.replace("\n", "\n    "), end="", flush=True)
    if not times_s:
        raise DemoError("the stream brought nothing.")
    took = f"the first after {1000 * times_s[0]:.0f} ms, the last after {times_s[-1]:.1f} s"
    print(f"\n    {len(times_s)} chunks, {took}")


def texts_of(answer: httpx2.Response) -> Iterator[str]:
    """Give the texts of a stream's events, up to its end."""
    data = ""
    for line in answer.iter_lines():
        data = line.removeprefix("data: ") or data
        if line.startswith("data: {") and (text := json.loads(data).get("text")):
            yield text
    if data != "[DONE]":
        raise DemoError(f"the stream answered {answer.status_code} and ended with {data[:300]!r}.")


def show_stream(client: httpx2.Client, method: str, model: str, **request: Any) -> None:
    path = f"/v1/models/{model}/stream"
    print(f"  {method:4} {path}")
    started = time.monotonic()
    with client.stream(method, path, **request) as answer:
        print_pieces(texts_of(answer), started)


def said(text: str, system: str = "") -> Any:
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": text}]


def show_chat(client: httpx2.Client) -> None:
    url = f"{client.base_url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as opened:
        chat: Any = functools.partial(
            opened.chat.completions.create, model="smollm2", temperature=0
        )
        print("  chat.completions.create(stream=True)")
        started = time.monotonic()
        stream = chat(messages=said("Name three fruits."), max_completion_tokens=32, stream=True)
        texts = (text for chunk in stream if (text := chunk.choices[0].delta.content))
        print_pieces(texts, started)

        print(f"  {len(QUESTIONS)} conversations at once, written side by side")
        started = time.monotonic()
        with ThreadPoolExecutor(len(QUESTIONS)) as pool:
            ask = functools.partial(chat, max_completion_tokens=24)
            answers = list(pool.map(lambda text: ask(messages=said(text)), QUESTIONS))
        elapsed_s = time.monotonic() - started
        for question, answer in zip(QUESTIONS, answers, strict=True):
            print(f"    {question}  {answer.choices[0].message.content}")
        n_tokens = sum(answer.usage.completion_tokens for answer in answers)
        print(f"    {n_tokens} tokens in {elapsed_s:.1f} s, {n_tokens / elapsed_s:.0f} a second")

        print("  An answer held to a JSON schema")
        held = chat(
            messages=said(NEWS, "Extract the facts from the text as JSON."),
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": PERSON},
            },
        )
        print(f"    {NEWS}\n    {json.loads(held.choices[0].message.content)}")


def show_errors(client: httpx2.Client) -> None:
    unknown = "/v1/models/gpt/predict"
    for status, path, body in (422, MINILM, '{"txt": "a"}'), (400, MINILM, "{"), (404, unknown, ""):
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        error = checked(answer, status).json()["error"]
        tell(answer, f"{error['code']}: {error['message']}")


def tour(client: httpx2.Client) -> None:
    heading("Health, models, pages")
    show_routes(client)
    heading("A sentence becomes a vector; the path without a version is the newest version's")
    show_embeddings(client)
    heading("Sentences that mean the same have similar vectors (1: they point the same way)")
    show_similarities(client)
    heading("Requests that wait share a batch")
    show_batching(client)
    if any(model["id"] == "smollm2" for model in client.get("/v1/models").json()["data"]):
        heading("A language model, token by token")
        asked = {"prompt": RAINBOW, "echo": True, "max_tokens": 24, "temperature": 0}
        show_stream(client, "POST", "smollm2", json=asked)
        heading("The same model through the client of OpenAI")
        show_chat(client)
    else:
        heading("A stream, token by token; a browser can GET it too")
        show_stream(client, "POST", "lawyer", json={"words": 24, "seed": 7})
        show_stream(client, "GET", "lawyer", params={"words": 12, "seed": 3})
    heading("All errors have one shape, and say what is wrong")
    show_errors(client)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the server running")
    keep = parser.parse_args().keep or (sys.stdin.isatty() and sys.stdout.isatty())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server is stopped then, too
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    heading(f"mlserve run demo_server:server --port {port}")
    try:
        with serving(port) as process, httpx2.Client(base_url=url, timeout=30) as client:
            wait_until_ready(client, process)
            tour(client)
            heading(f"Try the models yourself: {url}/playground")
            if keep:
                print("  The server runs until Ctrl+C.", flush=True)
                process.wait()
    except KeyboardInterrupt:
        return 0 if keep else 130
    except FAILURES as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    print("  The tour is over and the server stopped; `scripts/demo --keep` leaves it running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
