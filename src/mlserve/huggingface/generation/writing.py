"""From the tokens of one answer to its text, as it grows."""

from typing import Any

from tokenizers.decoders import DecodeStream

from mlserve.huggingface.generation.sampling import Sampled
from mlserve.huggingface.generation.stops import StopFinder
from mlserve.tasks.generation import TokenLogprob, TopLogprob

__all__ = ["TextWriter", "told_logprobs"]

_CONTEXT = 8  # tokens of the prompt by which a tokenizer sees whether a space begins a word


class TextWriter:
    """
    Decodes one answer token by token, up to the first stop.

    A character whose bytes are those of several tokens comes with the last one of them.

    Args:
        tokenizer: The model's, with a fast backend.
        prompt: The prompt's tokens.
        stops: Texts that end the answer.
        keeps_special: Whether special tokens are text, too.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: list[int],
        stops: tuple[str, ...],
        *,
        keeps_special: bool = False,
    ) -> None:
        self._skips_special = not keeps_special
        self._backend = tokenizer.backend_tokenizer
        context = prompt[-_CONTEXT:]
        if self._backend.decode(context).endswith("\ufffd"):  # it ends amid a character
            context = []
        self._stream = DecodeStream(ids=context, skip_special_tokens=self._skips_special)
        self._finder = StopFinder(stops)
        self._pending: list[int] = []

    @property
    def is_stopped(self) -> bool:
        """Whether a stop has come."""
        return self._finder.is_stopped

    def write(self, token: int) -> str:
        """Take a token and give the text that is known now."""
        text = self._stream.step(self._backend, token)
        if text is None:
            self._pending.append(token)
            return ""
        self._pending.clear()
        return self._finder.feed(text)

    def finish(self) -> str:
        """Give what was held back, at the end of the answer."""
        rest = ""
        if self._pending:  # the bytes of half a character, or tokens that stand for nothing
            rest = self._backend.decode(self._pending, skip_special_tokens=self._skips_special)
        return self._finder.feed(rest) + self._finder.finish()

    def __repr__(self) -> str:
        return f"<TextWriter, {len(self._pending)} tokens wait>"


def told_logprobs(tokenizer: Any, sampled: Sampled) -> list[TokenLogprob] | None:
    """Give what is told of a token's probability; `None` if nothing is asked for."""
    if sampled.logprob is None:
        return None
    top = [
        TopLogprob(token=text, logprob=logprob, bytes=list(text.encode()))
        for token, logprob in sampled.top
        for text in (str(tokenizer.decode([token])),)
    ]
    text = str(tokenizer.decode([sampled.token]))
    return [
        TokenLogprob(
            token=text, logprob=sampled.logprob, bytes=list(text.encode()), top_logprobs=top
        )
    ]
