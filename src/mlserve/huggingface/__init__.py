"""
Ready-made handlers for Hugging Face models, to serve as they are or to subclass.

The only package of mlserve that imports torch and transformers; they come with
`pip install 'mlserve[transformers]'`.
"""

try:
    import torch as _torch  # noqa: F401 - likewise
    import transformers as _transformers  # noqa: F401 - likewise
    from PIL import Image as _Image  # noqa: F401 - imported only to see whether it is there
except ImportError as exc:
    raise ImportError(
        "`mlserve.huggingface` needs torch, transformers and Pillow, and one is not installed."
        " Run: pip install 'mlserve[transformers]'"
    ) from exc

from mlserve.huggingface import samples
from mlserve.huggingface.classification import (
    Classification,
    ClassificationRequest,
    LabelScore,
    TextClassification,
)
from mlserve.huggingface.embedding import Embedding, EmbeddingRequest, TextEmbedding
from mlserve.huggingface.generation.handler import TextGeneration
from mlserve.huggingface.image_classification import (
    ImageClassification,
    ImageClassificationRequest,
)
from mlserve.huggingface.pipeline import Pipeline, PipelineRequest
from mlserve.huggingface.reranking import Ranking, Reranking, RerankingRequest
from mlserve.huggingface.token_classification import (
    Entities,
    Entity,
    TokenClassification,
    TokenClassificationRequest,
)

__all__ = [
    "Classification",
    "ClassificationRequest",
    "Embedding",
    "EmbeddingRequest",
    "Entities",
    "Entity",
    "ImageClassification",
    "ImageClassificationRequest",
    "LabelScore",
    "Pipeline",
    "PipelineRequest",
    "Ranking",
    "Reranking",
    "RerankingRequest",
    "TextClassification",
    "TextEmbedding",
    "TextGeneration",
    "TokenClassification",
    "TokenClassificationRequest",
    "samples",
]
