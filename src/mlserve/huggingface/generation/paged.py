"""
The engine of transformers behind our own checks: memory in pages, for many sequences on a GPU.

It runs in a thread of its own, which one wrong request ends for all. So nothing reaches it that was
not checked, and it is started again when it has ended.
"""

import logging
import math
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from mlserve.errors import MLServeError, ModelError, UnsupportedParameterError
from mlserve.huggingface.generation.sampling import Sampled, Sampling
from mlserve.huggingface.generation.sequences import Prompt, Row, Running
from mlserve.observability.loggers import get_logger
from mlserve.stepped import Advance

__all__ = ["PagedEngine"]

logger = get_logger(__name__)

_WAIT_S = 0.02  # for tokens, until those who wish to enter or to leave are asked again
_STOP_S = 10.0  # for its thread
_PAGE_TOKENS = {"cpu": 32, "cuda": 256}


class PagedEngine:
    """
    Runs the sequences of one model by the continuous batching of transformers.

    Requests choose their temperature, `top_p` and `top_k`. What else would change the tokens is
    refused: chances come from one generator for all, and tokens are chosen before we see them.
    All methods are called in the replica's thread.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        n_tokens: For how many tokens to reserve pages; `None` = as many as half of the free memory
            of the device holds.
        n_prompt_tokens: How many tokens are computed in a step at most.

    Raises:
        Exception: What transformers says of a model that it cannot run so.
    """

    def __init__(
        self, model: Any, tokenizer: Any, n_tokens: int | None, n_prompt_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._n_vocab = model.get_output_embeddings().weight.shape[0]
        self._rows: dict[str, Row] = {}
        self._n_started = 0
        page = _PAGE_TOKENS["cuda" if n_tokens is None else "cpu"]
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
        defaults: type[Any] = GenerationConfig  # it has no types
        self._manager = model.init_continuous_batching(
            # A request can only choose what is no default here.
            generation_config=defaults(
                do_sample=True,
                temperature=0.5,
                top_k=self._n_vocab,
                top_p=0.99,
                eos_token_id=-1,
                pad_token_id=0,
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=page,
                num_blocks=None if n_tokens is None else math.ceil(n_tokens / page),
                max_batch_tokens=n_prompt_tokens,
                max_memory_percent=0.5,
                per_request_processors=True,
            ),
        )
        self._manager.warmup()
        self._manager.start()

    @property
    def n_running(self) -> int:
        """How many choices are being written."""
        return len(self._rows)

    def admit(self, prompt: Prompt) -> Running:
        """
        Begin with all choices of a request.

        Raises:
            UnsupportedParameterError: If it asks for what this engine has not.
            ModelError: If transformers does not take it.
        """
        _require_possible(prompt)
        if not self._manager.is_running():
            logger.warning("generation.engine.restarted")
            self._manager.start()
        running = Running(prompt)
        running.usage.prompt_tokens = len(prompt.tokens)
        running.rows = [Row(running, index, self._tokenizer) for index in range(prompt.n)]
        for row in running.rows:
            self._begin(row)
        return running

    def evict(self, running: Running) -> None:
        """Forget a request."""
        for name in [name for name, row in self._rows.items() if row.running is running]:
            del self._rows[name]
            self._manager.cancel_request(name)
        running.rows.clear()

    def step(self) -> list[Advance]:
        """Wait a moment for new tokens, and give all that are there."""
        news: dict[int, Advance] = {}
        output = self._manager.get_result(timeout=_WAIT_S)
        while output is not None:
            self._take(output, news)
            queued = self._manager.output_router.output_queue
            output = None if queued.empty() else self._manager.get_result(timeout=0)
        if not news and not self._manager.is_running():
            self._fail_all(news)
        return list(news.values())

    def close(self) -> None:
        """End its thread and give the memory back."""
        self._rows.clear()
        if self._manager.is_running():
            self._manager.stop(block=True, timeout=_STOP_S, hard_stop=True)

    def _begin(self, row: Row) -> None:
        prompt = row.running.prompt
        name, self._n_started = f"{self._n_started}", self._n_started + 1
        sampling = prompt.sampling
        is_greedy = sampling.temperature == 0
        taken = self._manager.add_request(
            prompt.tokens,
            name,
            max_new_tokens=prompt.max_tokens,
            streaming=True,
            eos_token_id=sorted(prompt.end_tokens) or -1,
            temperature=1.0 if is_greedy else float(sampling.temperature),
            top_k=1 if is_greedy else min(sampling.top_k or self._n_vocab, self._n_vocab),
            top_p=1.0 if is_greedy else float(sampling.top_p),
        )
        if taken is None:
            self.evict(row.running)
            raise ModelError("The engine takes no requests.")
        self._rows[name] = row

    def _take(self, output: Any, news: dict[int, Advance]) -> None:
        """Take in what transformers tells of one choice: all tokens that it has by now."""
        row = self._rows.get(output.request_id)
        if row is None:  # it was cancelled
            return
        running = row.running
        advance = news.setdefault(id(running), Advance(running))
        if output.error is not None:
            logger.error("generation.engine.failed", extra={"reason": output.error})
            advance.error = ModelError("The engine could not go on with the request.")
            self.evict(running)
            return
        n_taken = row.n_cached
        row.n_cached = len(output.generated_tokens)
        for token in output.generated_tokens[n_taken:]:
            try:
                chunk = row.take(Sampled(token))
            except MLServeError as exc:
                advance.error = exc
                self.evict(running)
                return
            if chunk is None:
                continue
            advance.chunks = [*advance.chunks, chunk]
            if chunk.finish_reason is not None:
                self._end(output, row, advance)
                return

    def _end(self, output: Any, row: Row, advance: Advance) -> None:
        del self._rows[output.request_id]
        if not output.is_finished():  # it ended by a text
            self._manager.cancel_request(output.request_id)
        running = row.running
        running.rows.remove(row)
        running.n_ended += 1
        advance.is_finished = running.n_ended == running.prompt.n
        if advance.is_finished:
            advance.chunks[-1].usage = running.usage

    def _fail_all(self, news: dict[int, Advance]) -> None:
        for running in {row.running for row in self._rows.values()}:
            error = ModelError("The engine ended amid the request.")
            news[id(running)] = Advance(running, error=error)
            self.evict(running)

    def __repr__(self) -> str:
        return f"<PagedEngine with {len(self._rows)} sequences>"


def _require_possible(prompt: Prompt) -> None:
    """Refuse what would change the tokens and is not to be had."""
    plain, sampling = Sampling(), prompt.sampling
    for name, param in (
        ("min_p", "min_p"),
        ("presence_penalty", "presence_penalty"),
        ("frequency_penalty", "frequency_penalty"),
        ("repetition_penalty", "repetition_penalty"),
        ("bias", "logit_bias"),
        ("seed", "seed"),
        ("n_top", "logprobs"),
    ):
        if getattr(sampling, name) != getattr(plain, name):
            raise UnsupportedParameterError(param, "the paged engine does not have it")
    if prompt.make_grammar() is not None:
        raise UnsupportedParameterError("response_format", "the paged engine does not have it")
