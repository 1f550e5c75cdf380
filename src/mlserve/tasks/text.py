"""A text as a request holds it."""

from typing import Annotated

from pydantic import Field

__all__ = ["MAX_CHARACTERS", "Text"]

MAX_CHARACTERS = 32_768
"""The longest text that is taken; bounds the time that one request spends in the tokenizer."""

Text = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_CHARACTERS,
        description="The text. What is beyond the model's longest input is cut off.",
    ),
]
