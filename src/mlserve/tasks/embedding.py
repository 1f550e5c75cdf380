"""Text in, vector out."""

from pydantic import BaseModel, ConfigDict, Field

from mlserve.tasks.text import Text

__all__ = ["Embedding", "EmbeddingRequest"]


class EmbeddingRequest(BaseModel):
    """One text; send several requests at once for several texts, they share batches."""

    model_config = ConfigDict(extra="forbid")

    text: Text


class Embedding(BaseModel):
    """A text's vector."""

    embedding: list[float] = Field(description="The vector, one number per dimension.")
    tokens: int = Field(description="How many tokens the model read, special ones included.")
