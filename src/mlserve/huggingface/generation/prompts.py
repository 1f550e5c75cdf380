"""From a request to a prompt: made of tokens and checked, before it comes near the model."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mlserve.errors import ContextLengthError, InvalidInputError
from mlserve.huggingface.generation.grammar import Grammar, GrammarCompiler
from mlserve.huggingface.generation.sampling import Sampling
from mlserve.huggingface.generation.sequences import Prompt
from mlserve.huggingface.generation.tools import ToolReader, response_template_of
from mlserve.tasks.generation import GenerationRequest, Message

__all__ = ["PromptMaker"]


class PromptMaker:
    """
    Makes prompts for one model. In one thread at a time.

    Args:
        tokenizer: The model's.
        n_vocab: How many logits the model gives.
        max_length: How many tokens a prompt and its answer have together at most.
        n_choices: How many choices a request has at most.
        defaults: The model's own generation configuration.
        regex: What every answer has to match; the server's own, never a client's.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        n_vocab: int,
        max_length: int,
        n_choices: int,
        defaults: Any,
        regex: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._max_length = max_length
        self._n_choices = n_choices
        self._defaults = defaults
        self._regex = regex
        self._compiler: GrammarCompiler | None = None
        self._end_tokens = _end_tokens(tokenizer, defaults)

    def make(self, request: GenerationRequest) -> Prompt:
        """
        Make a prompt.

        Raises:
            ContextLengthError: If prompt and answer are longer than the context.
            InvalidInputError: If the model cannot take the request.
        """
        if request.n > self._n_choices:
            raise InvalidInputError(
                f"`n` is {request.n}; this server gives {self._n_choices} choices at most.",
                param="n",
            )
        tokens = self._tokens(request)
        room = self._max_length - len(tokens)
        if room < 1 or (request.max_tokens or 1) > room:
            raise ContextLengthError(
                f"The prompt has {len(tokens)} tokens and `max_tokens` is {request.max_tokens};"
                f" together they may be {self._max_length}. Shorten the prompt or ask for less.",
                param="max_tokens" if room >= 1 else _input_of(request),
            )
        self._require_known(tuple(request.logit_bias), "logit_bias")
        self._require_known(request.stop_token_ids, "stop_token_ids")
        grammar = self._grammar(request)
        ends = frozenset() if request.ignore_eos else self._end_tokens
        is_echoed = request.echo and isinstance(request.prompt, str)
        return Prompt(
            tokens=tokens,
            max_tokens=request.max_tokens or room,
            sampling=self._sampling(request),
            n=request.n,
            stops=tuple(request.stop),
            end_tokens=ends | frozenset(request.stop_token_ids),
            make_grammar=(lambda: None) if grammar is None else grammar.copy,
            echo=str(request.prompt) if is_echoed else "",
            make_reader=self._reader_maker(request, tokens),
        )

    def _reader_maker(
        self, request: GenerationRequest, tokens: list[int]
    ) -> Callable[[], ToolReader | None]:
        if not request.tools:
            return lambda: None
        template = response_template_of(self._tokenizer)
        if template is None:
            raise InvalidInputError(
                "How this model writes calls of tools is not known. Leave `tools` out.",
                param="tools",
            )
        return partial(ToolReader, template, request.tools, str(self._tokenizer.decode(tokens)))

    def _tokens(self, request: GenerationRequest) -> list[int]:
        if isinstance(request.prompt, list):
            self._require_known(request.prompt, "prompt")
            return request.prompt
        if isinstance(request.prompt, str):
            tokens: list[int] = self._tokenizer(request.prompt)["input_ids"]
        else:
            tokens = self._conversation(request)
        if not tokens:
            raise InvalidInputError("The prompt has no tokens. Write something.", param="prompt")
        return tokens

    def _conversation(self, request: GenerationRequest) -> list[int]:
        if not getattr(self._tokenizer, "chat_template", None):
            raise InvalidInputError(
                "The model has no chat template. Send a `prompt` instead of messages.",
                param="messages",
            )
        messages = [_as_template_takes_it(message) for message in request.messages or ()]
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tools=request.tools,
                add_generation_prompt=True,
                tokenize=False,
                **request.chat_template_kwargs,
            )
        except Exception as exc:  # a template raises what it likes
            raise InvalidInputError(
                f"The model's chat template does not take these messages: {str(exc)[:200]}",
                param="messages",
            ) from exc
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _require_known(self, tokens: Sequence[int], param: str) -> None:
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._n_vocab:
            raise InvalidInputError(
                f"A token id in `{param}` is not one of the model's {self._n_vocab}.", param=param
            )

    def _sampling(self, request: GenerationRequest) -> Sampling:
        temperature = _given(request.temperature, self._defaults.temperature, 1.0)
        return Sampling(
            temperature=temperature,
            top_p=_given(request.top_p, self._defaults.top_p, 1.0),
            top_k=int(_given(request.top_k, self._defaults.top_k, 0)),
            min_p=_given(request.min_p, getattr(self._defaults, "min_p", None), 0.0),
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=_given(
                request.repetition_penalty, self._defaults.repetition_penalty, 1.0
            ),
            bias=tuple(request.logit_bias.items()),
            seed=request.seed,
            n_top=request.top_logprobs if request.logprobs else None,
        )

    def _grammar(self, request: GenerationRequest) -> Grammar | None:
        wanted = request.response_format
        if wanted.type == "text" and self._regex is None:
            return None
        if not GrammarCompiler.is_available():
            raise InvalidInputError(
                "This server cannot hold answers to a format: llguidance is not installed.",
                param="response_format",
            )
        if self._compiler is None:
            self._compiler = GrammarCompiler(self._tokenizer, self._n_vocab)
        if wanted.type == "text" and self._regex is not None:
            return self._compiler.of_regex(self._regex)
        return self._compiler.of_format(wanted)

    def __repr__(self) -> str:
        return f"<PromptMaker for {self._max_length} tokens>"


def _input_of(request: GenerationRequest) -> str:
    return "prompt" if request.messages is None else "messages"


def _given(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _end_tokens(tokenizer: Any, defaults: Any) -> frozenset[int]:
    ends = defaults.eos_token_id
    ids = list(ends) if isinstance(ends, list | tuple) else [ends]
    return frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)


def _as_template_takes_it(message: Message) -> dict[str, Any]:
    """Give a message as chat templates know them: the arguments of calls are no text there."""
    given = message.model_dump(exclude_none=True)
    for call in given.get("tool_calls", ()):
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"])
            except ValueError as exc:
                raise InvalidInputError(
                    "The arguments of a tool call must be JSON.", param="messages"
                ) from exc
    return given
