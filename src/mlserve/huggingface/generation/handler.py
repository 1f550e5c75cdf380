"""Text in, text out, token by token: the handler for causal language models."""

import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from transformers import AutoModelForCausalLM

from mlserve.errors import ConfigurationError
from mlserve.handler import Call
from mlserve.huggingface._checkpoint import Checkpoint
from mlserve.huggingface._devices import Dtype, place
from mlserve.huggingface.generation.engine import Engine, Memory
from mlserve.huggingface.generation.paged import PagedEngine
from mlserve.huggingface.generation.prompts import PromptMaker
from mlserve.huggingface.generation.sequences import Prompt, Running
from mlserve.huggingface.generation.sequential import SequentialMemory
from mlserve.huggingface.generation.slots import SlotMemory, bytes_per_token, has_plain_attention
from mlserve.observability.loggers import get_logger
from mlserve.settings import Replicas
from mlserve.stepped import Advance, SteppedHandler
from mlserve.tasks.generation import (
    Choice,
    Generation,
    GenerationChunk,
    GenerationRequest,
    Usage,
)

__all__ = ["TextGeneration"]

logger = get_logger(__name__)

EngineKind = Literal["auto", "slots", "sequential", "paged"]

_SLOTS = {"cpu": 16, "cuda": 64}
_LONGEST = 4096
_SHARE_OF_MEMORY = 0.5
_PROMPT_TOKENS = {"cpu": 256, "cuda": 2048}


class TextGeneration(SteppedHandler[GenerationRequest, Generation, GenerationChunk]):
    """
    Serve a causal language model: prompts and conversations are gone on with.

    All requests are computed together, and each enters at the next step. The memory for their
    tokens is taken at load, which says in the log how much that is.

    Args:
        model: A hub id, or a local folder. Only safetensors weights are read and no code of the
            model is run.
        revision: The hub's branch, tag or commit; a commit pins the model.
        dtype: `"auto"` is float32 on CPU, and bfloat16 on CUDA devices that compute in it.
        slots: How many answers are written at once; `None` = 16 on CPU and 64 on CUDA, or what
            half of the free memory holds.
        max_length: How many tokens a prompt and its answer have together at most; `None` = what the
            model says, up to 4096.
        engine: `"slots"` computes all sequences at once and needs plain attention in every layer;
            `"sequential"` takes any decoder, one sequence after the other; `"auto"` chooses between
            them. `"paged"` is the continuous batching of transformers, which shares pages of memory
            between sequences and has only temperature, `top_p` and `top_k` to choose from.
        prompt_tokens: How many tokens of prompts are read per step; `None` = 256 on CPU, 2048 on
            CUDA. More lets prompts be read faster and makes those wait longer who write.
        regex: What every answer has to match that asks for no other format.
        model_kwargs: Further arguments of `from_pretrained`, such as `attn_implementation`.

    Raises:
        ConfigurationError: If an argument is wrong or the folder does not exist, on creation; if
            the model is unsafe or incomplete, or there is too little memory, in `load`.

    Example:
        server.add("chat", functools.partial(TextGeneration, samples.smollm2()))
    """

    replicas = Replicas(count=1)

    def __init__(  # noqa: PLR0913 - options of one model
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: Dtype = "auto",
        slots: int | None = None,
        max_length: int | None = None,
        engine: EngineKind = "auto",
        prompt_tokens: int | None = None,
        regex: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._checkpoint = Checkpoint(
            model, revision=revision, dtype=dtype, model_kwargs=model_kwargs
        )
        for name, value in (
            ("slots", slots),
            ("max_length", max_length),
            ("prompt_tokens", prompt_tokens),
        ):
            if value is not None and value < 1:
                raise ConfigurationError(f"`{name}` must be at least 1, got {value}.")
        if engine not in get_args(EngineKind):
            raise ConfigurationError(
                f'`engine` must be "auto", "slots", "sequential" or "paged", got {engine!r}.'
            )
        self._slots = slots
        self._max_length = max_length
        self._engine_kind = engine
        self._prompt_tokens = prompt_tokens
        self._regex = regex

    def load(self) -> None:
        """Open the model and take the memory for its sequences."""
        device, dtype = place(self.context, self._checkpoint.dtype)
        tokenizer, model = self._checkpoint.load(AutoModelForCausalLM, dtype=dtype, device=device)
        kind = device.type if device.type in _PROMPT_TOKENS else "cuda"
        n_prompt_tokens = self._prompt_tokens or _PROMPT_TOKENS[kind]
        most = int(getattr(model.config, "max_position_embeddings", None) or _LONGEST)
        max_length = min(self._max_length or _LONGEST, most)
        slots = self._slots or _SLOTS[kind]
        self._engine: Engine | PagedEngine
        if self._engine_kind == "paged":
            self._engine = self._paged(model, tokenizer, slots, max_length, n_prompt_tokens)
        else:
            memory = self._memory(model, slots, max_length)
            slots = memory.n_rows
            self._engine = Engine(memory, tokenizer, n_prompt_tokens)
        self.slots = slots
        self._prompts = PromptMaker(
            tokenizer,
            n_vocab=model.get_output_embeddings().weight.shape[0],
            max_length=max_length,
            n_choices=slots,
            defaults=model.generation_config,
            regex=self._regex,
        )

    def unload(self) -> None:
        """End what the engine runs beside the replica's thread."""
        engine = getattr(self, "_engine", None)
        if isinstance(engine, PagedEngine):
            engine.close()

    def examples(self) -> list[GenerationRequest]:
        """Give a prompt that any tokenizer reads."""
        return [GenerationRequest(prompt="Once upon a time", max_tokens=8, temperature=0)]

    def preprocess(self, request: GenerationRequest) -> Prompt:
        """Make tokens of a request and check it."""
        return self._prompts.make(request)

    def admit(self, item: Prompt, call: Call | None = None) -> Running:
        """Take in a prompt."""
        running = self._engine.admit(item)
        running.call = call
        return running

    def step(self) -> list[Advance]:
        """Read pieces of prompts, and write a token of every answer; the tokens are noted."""
        with torch.inference_mode():
            advances = self._engine.step()
        for advance in advances:
            advance.sequence.note_usage()
        return advances

    def evict(self, sequence: Running) -> None:
        """Forget a request that nobody waits for."""
        self._engine.evict(sequence)

    def postprocess(self, output: list[GenerationChunk]) -> Generation:
        """Put the pieces of all choices together."""
        by_choice: dict[int, list[GenerationChunk]] = defaultdict(list)
        for chunk in output:
            by_choice[chunk.index].append(chunk)
        return Generation(
            choices=[_whole(index, by_choice[index]) for index in sorted(by_choice)],
            usage=next((chunk.usage for chunk in reversed(output) if chunk.usage), Usage()),
        )

    def _paged(
        self, model: Any, tokenizer: Any, slots: int, max_length: int, n_prompt_tokens: int
    ) -> PagedEngine:
        n_tokens = None
        if model.device.type == "cpu":
            n_tokens = max_length * self._fitting(
                slots, max_length, bytes_per_token(model), model.device
            )
        try:
            return PagedEngine(model, tokenizer, n_tokens, n_prompt_tokens)
        except Exception as exc:
            raise ConfigurationError(
                f"transformers cannot run model {self._checkpoint.name!r} in pages:"
                f' {str(exc)[:300]} Use `engine="auto"`.'
            ) from exc

    def _memory(self, model: Any, slots: int, max_length: int) -> Memory:
        is_plain = has_plain_attention(model)
        if self._engine_kind == "slots" and not is_plain:
            raise ConfigurationError(
                f"The layers of model {self._checkpoint.name!r} do not all see every token before,"
                ' so that rows cannot hold them. Use `engine="sequential"`.'
            )
        if self._engine_kind == "sequential" or not is_plain:
            logger.info("generation.engine.sequential", extra={"model": self.context.name})
            return SequentialMemory(model, slots, max_length)
        slots = self._fitting(slots, max_length, bytes_per_token(model), model.device)
        return SlotMemory(model, slots, max_length)

    def _fitting(self, slots: int, max_length: int, token_bytes: int, device: Any) -> int:
        """Say how many slots there is memory for."""
        free_bytes = _free_bytes(device)
        slot_bytes = token_bytes * (max_length + 1)
        n_fitting = int(free_bytes * _SHARE_OF_MEMORY / slot_bytes)
        if self._slots is None:
            slots = min(slots, n_fitting)
        if slots > n_fitting or slots < 1:
            raise ConfigurationError(
                f"{max(slots, 1)} slots of {max_length} tokens take"
                f" {max(slots, 1) * slot_bytes / 2**20:.0f} MiB, and half of what is free is"
                f" {free_bytes * _SHARE_OF_MEMORY / 2**20:.0f} MiB. Set less `slots` or a smaller"
                " `max_length`."
            )
        about = {
            "model": self.context.name,
            "slots": slots,
            "max_length": max_length,
            "bytes": slots * slot_bytes,
        }
        logger.info("generation.memory.reserved", extra=about)
        self.context.progress(1.0, f"{slots} slots, {slots * slot_bytes / 2**20:.0f} MiB")
        return slots


def _free_bytes(device: Any) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _whole(index: int, chunks: list[GenerationChunk]) -> Choice:
    logprobs = [entry for chunk in chunks for entry in chunk.logprobs or ()]
    calls = [call for chunk in chunks for call in chunk.tool_calls or ()]
    reason = chunks[-1].finish_reason or "stop"
    return Choice(
        index=index,
        text="".join(chunk.text for chunk in chunks),
        finish_reason=reason,
        logprobs=logprobs or None,
        tool_calls=calls or None,
    )
