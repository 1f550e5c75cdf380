"""The systems that `benchmarks.generation` has do the same requests."""

import asyncio
import copy
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from mlserve.huggingface.generation import engine
from mlserve.huggingface.generation.sampling import Sampling
from mlserve.huggingface.generation.sequences import Prompt
from mlserve.huggingface.generation.slots import SlotMemory

N_CLIENTS = 16
MAX_LENGTH = 320
N_PROMPT_TOKENS = 256
N_SPECIAL = 32  # ids from 0 on that are no text, in both models at most


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how many tokens are wanted."""

    prompt: list[int]
    n_new: int


Work = Sequence[Request]


def made_work(n: int, n_vocab: int) -> Work:
    """Make requests; the same ones each time."""
    dice = random.Random(1)

    def made() -> Request:
        prompt = [dice.randrange(N_SPECIAL, n_vocab) for _ in range(dice.randint(16, 192))]
        return Request(prompt, dice.randint(8, 96))

    return [made() for _ in range(n)]


@dataclass(slots=True)
class Run:
    """How long the work took, and what was answered, in the order of the requests."""

    n_tokens: int
    took_s: float
    first_s: list[float]
    """From sending a request to its first token."""
    texts: list[str]
    steps_s: list[float] = field(default_factory=list)
    """Of the engine: how long each step took."""
    others_busy: float = 0.0
    """How many cores were busy with anything else meanwhile."""

    @property
    def tokens_per_s(self) -> float:
        return self.n_tokens / self.took_s


class Clients:
    """
    What the clients have sent and got; each sends the next request once it has its answer.

    Args:
        work: What they send, each the next one that no other has sent.
        decode: Makes text of an answer's tokens.
    """

    def __init__(self, work: Work, decode: Callable[[list[int]], str]) -> None:
        self._work = work
        self._decode = decode
        self._todo = deque(range(len(work)))
        self._lock = threading.Lock()
        self._sent_s: dict[int, float] = {}
        self._first_s: dict[int, float] = {}
        self._answers: dict[int, list[int] | str] = {}
        self._began_s = time.perf_counter()

    @property
    def is_over(self) -> bool:
        return len(self._answers) == len(self._work)

    def send(self) -> int | None:
        """Give the number of the next request, if there is one."""
        with self._lock:
            if not self._todo:
                return None
            number = self._todo.popleft()
        self._sent_s[number] = time.perf_counter()
        return number

    def send_first(self) -> list[int]:
        """Give what all clients begin with."""
        numbers = [self.send() for _ in range(N_CLIENTS)]
        return [number for number in numbers if number is not None]

    def note_token(self, number: int) -> None:
        """Take in that a request has got a token."""
        self._first_s.setdefault(number, time.perf_counter() - self._sent_s[number])

    def note_answer(self, number: int, answer: list[int] | str) -> None:
        self._answers[number] = answer

    def run(self) -> Run:
        """Give what came of it, at the end."""
        took_s = time.perf_counter() - self._began_s
        order = range(len(self._work))
        answers = [self._answers[number] for number in order]
        for request, answer in zip(self._work, answers, strict=True):
            if not isinstance(answer, str) and len(answer) != request.n_new:
                raise RuntimeError(f"{request.n_new} tokens were wanted, not {len(answer)}.")
        texts = [a if isinstance(a, str) else self._decode(a) for a in answers]
        n_tokens = sum(request.n_new for request in self._work)
        return Run(n_tokens, took_s, [self._first_s[number] for number in order], texts)


class System:
    """
    A way to serve a model.

    Args:
        model: A decoder.
        tokenizer: Its tokenizer.
    """

    name: ClassVar[str]

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def run(self, work: Work) -> Run:
        """Do the work of all clients."""
        clients = Clients(work, self._decoded)
        with torch.inference_mode():
            self._serve(clients, work)
        return clients.run()

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _serve(self, clients: Clients, work: Work) -> None:
        raise NotImplementedError

    def _generate(self, request: Request, streamer: Any) -> list[int]:
        """Give what transformers generates for one request alone."""
        ids = torch.tensor([request.prompt])
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.n_new,
            streamer=streamer,
            **_greedy(),
        )
        return list(map(int, out[0, len(request.prompt) :].tolist()))


def _greedy() -> dict[str, Any]:
    return {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


class _Noting(BaseStreamer):
    """Tells of the first token, and of nothing else."""

    def __init__(self, clients: Clients, number: int) -> None:
        self._clients, self._number, self._n_puts = clients, number, 0

    def put(self, value: Any) -> None:
        self._n_puts += 1
        if self._n_puts == 2:  # the first one is the prompt
            self._clients.note_token(self._number)

    def end(self) -> None:
        """Nothing is held back."""


class Fifo(System):
    """One thread that generates for one request after the other, as `transformers serve` does."""

    name = "generate(), one by one"

    def _serve(self, clients: Clients, work: Work) -> None:
        waiting = deque(clients.send_first())
        while waiting:
            number = waiting.popleft()
            answer = self._generate(work[number], _Noting(clients, number))
            clients.note_answer(number, answer)
            if (following := clients.send()) is not None:
                waiting.append(following)


class Threads(System):
    """A thread per request, whose tokens come through a `TextIteratorStreamer`."""

    name = "a thread per request"

    def _serve(self, clients: Clients, work: Work) -> None:
        ask = partial(self._ask, clients, work)
        threads = [threading.Thread(target=ask) for _ in work[:N_CLIENTS]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ask(self, clients: Clients, work: Work) -> None:
        while (number := clients.send()) is not None:
            streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True)
            thread = threading.Thread(target=self._write, args=(clients, work, number, streamer))
            thread.start()
            for _ in streamer:
                clients.note_token(number)
            thread.join()

    def _write(self, clients: Clients, work: Work, number: int, streamer: Any) -> None:
        with torch.inference_mode():
            clients.note_answer(number, self._generate(work[number], streamer))


class Batches(System):
    """Whoever waits is computed in one batch, padded on the left, and answered at its end."""

    name = "static batches"

    def _serve(self, clients: Clients, work: Work) -> None:
        while numbers := clients.send_first():
            width = max(len(work[number].prompt) for number in numbers)
            lacking = [width - len(work[number].prompt) for number in numbers]
            rows = [[0] * n + work[i].prompt for n, i in zip(lacking, numbers, strict=True)]
            mask = [[0] * n + [1] * (width - n) for n in lacking]
            out = self._model.generate(
                torch.tensor(rows),
                attention_mask=torch.tensor(mask),
                max_new_tokens=max(work[number].n_new for number in numbers),
                **_greedy(),
            )
            for number, tokens in zip(numbers, out[:, width:].tolist(), strict=True):
                clients.note_token(number)  # streamers take batches of one
                clients.note_answer(number, tokens[: work[number].n_new])


class Continuous(System):
    """The continuous batching of transformers, with its best settings for these requests."""

    name = "continuous batching"

    def _serve(self, clients: Clients, work: Work) -> None:
        options: type[Any] = GenerationConfig  # it has no types
        manager = self._model.init_continuous_batching(
            generation_config=options(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=32,
                num_blocks=N_CLIENTS * MAX_LENGTH // 32,
                max_batch_tokens=N_PROMPT_TOKENS,
                auto_switch_to_flash=False,
            ),
        )
        numbers: dict[str, int] = {}

        def send(number: int | None) -> None:
            if number is not None:
                request = work[number]
                numbers[f"{number}"] = number
                manager.add_request(
                    request.prompt, f"{number}", max_new_tokens=request.n_new, streaming=True
                )

        manager.start()
        try:
            for number in clients.send_first():
                send(number)
            while not clients.is_over:
                news = manager.get_result(timeout=60)
                if news is None or news.error is not None:
                    raise RuntimeError(f"Continuous batching has failed: {news}.")
                clients.note_token(numbers[news.request_id])
                if news.is_finished():
                    clients.note_answer(numbers[news.request_id], news.generated_tokens)
                    send(clients.send())
        finally:
            manager.stop(block=True)


class Engine(System):
    """What `TextGeneration` runs, without any server."""

    name = "mlserve, in process"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(copy.deepcopy(model), tokenizer)  # whose attention others leave alone

    def run(self, work: Work) -> Run:
        """Do the work of all clients, and note how long the steps take."""
        self._steps_s: list[float] = []
        run = super().run(work)
        run.steps_s = self._steps_s
        return run

    def prefill_s(self, work: Work) -> float:
        """Say how long a request waits for its first token where there is no other one."""
        alone = [Request(request.prompt, 1) for request in work[:16]]
        firsts = [super(Engine, self).run([request]).first_s[0] for request in alone]
        return sorted(firsts)[len(firsts) // 2]

    def _serve(self, clients: Clients, work: Work) -> None:
        memory = SlotMemory(self._model, N_CLIENTS, MAX_LENGTH)
        running = engine.Engine(memory, self._tokenizer, N_PROMPT_TOKENS)
        numbers: dict[Any, int] = {}
        texts: dict[Any, str] = {}

        def admit(number: int | None) -> None:
            if number is not None:
                request, sampling = work[number], Sampling(temperature=0)
                prompt = Prompt(tokens=request.prompt, max_tokens=request.n_new, sampling=sampling)
                numbers[running.admit(prompt)] = number

        for number in clients.send_first():
            admit(number)
        while not clients.is_over:
            began_s = time.perf_counter()
            advances = running.step()
            self._steps_s.append(time.perf_counter() - began_s)
            for advance in advances:
                sequence, number = advance.sequence, numbers[advance.sequence]
                clients.note_token(number)
                text = "".join(chunk.text for chunk in advance.chunks)
                texts[sequence] = texts.get(sequence, "") + text
                if advance.is_finished:
                    clients.note_answer(number, texts.pop(sequence))
                    admit(clients.send())


class Http(System):
    """Streams of `mlserve run`, which is a process of its own, as this client is."""

    name = "mlserve, over HTTP"

    def __init__(self, tokenizer: Any, model: str, port: int) -> None:
        super().__init__(None, tokenizer)
        self._path = f"/v1/models/{model}/stream"
        self._port = port

    def _serve(self, clients: Clients, work: Work) -> None:
        asyncio.run(self._all(clients, work))

    async def _all(self, clients: Clients, work: Work) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(N_CLIENTS):
                group.create_task(self._ask(clients, work))

    async def _ask(self, clients: Clients, work: Work) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while (number := clients.send()) is not None:
            writer.write(self._head_and_body(work[number]))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"{head!r} {await reader.read(500)!r}")
            events = bytearray()
            while size := int(await reader.readline(), 16):
                events += (await reader.readexactly(size + 2))[:size]
                clients.note_token(number)
            await reader.readline()
            clients.note_answer(number, _text(events, work[number].n_new))
        writer.close()

    def _head_and_body(self, request: Request) -> bytes:
        fields = {"prompt": request.prompt, "max_tokens": request.n_new}
        body = json.dumps(fields | {"temperature": 0, "ignore_eos": True}).encode()
        return (
            b"POST %s HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (self._path.encode(), len(body), body)
        )


def _text(events: bytearray, n_wanted: int) -> str:
    """Put the pieces of a stream together."""
    lines = [line[6:] for line in events.splitlines() if line.startswith(b"data: {")]
    chunks = [json.loads(line) for line in lines]
    if not events.endswith(b"data: [DONE]\n\n") or "error" in chunks[-1]:
        raise RuntimeError(f"A stream has failed: {bytes(events[-300:])!r}")
    usage = chunks[-1]["usage"]
    if usage["completion_tokens"] != n_wanted:
        raise RuntimeError(f"{n_wanted} tokens were wanted, and there came {usage}.")
    return "".join(chunk["text"] for chunk in chunks)
