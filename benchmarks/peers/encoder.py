"""all-MiniLM-L6-v2 as the peers serve it: a batch is padded to its longest text."""

import os

import torch
from transformers import AutoModel, AutoTokenizer

MAX_TOKENS = 256


class Encoder:
    """Makes one vector of each text, of length 1. In float32, on one thread."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        folder = os.environ["BENCHMARK_MODEL"]
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> list[list[float]]:
        """Encode a batch."""
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        mask = tokens["attention_mask"].unsqueeze(-1)
        hidden = self._model(**tokens).last_hidden_state * mask
        vectors = hidden.sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(vectors, dim=-1).tolist()
