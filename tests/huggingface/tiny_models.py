"""Tiny models with random weights, saved to a folder as a real one would be."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from mlserve.handler import Context, ModelHandler

HandlerT = TypeVar("HandlerT", bound=ModelHandler[Any, Any])

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("a", "good", "bad", "film", "long", "short", "and", "the", "end", "is", "##s", "##er")
MAX_POSITIONS = 32


def tiny_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=SPECIAL[1]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    options = {**names, **settings}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # it has no types
        tokenizer_object=tokenizer, **options
    )


def tiny_config(**settings: Any) -> BertConfig:
    defaults: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": 0.5,
        "id2label": {0: "bad", 1: "mixed", 2: "good"},
        "label2id": {"bad": 0, "mixed": 1, "good": 2},
    }
    return BertConfig(**{**defaults, **settings})


def save(model: PreTrainedModel, folder: Path, **tokenizer_settings: Any) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer(**tokenizer_settings).save_pretrained(folder)
    return folder


def tiny_classifier(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(7)
    return save(BertForSequenceClassification(tiny_config(**settings)), folder)


def tiny_encoder(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(7)
    return save(BertModel(tiny_config(**settings)), folder)


def tiny_tagger(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(9)
    labels = {0: "O", 1: "B-PER", 2: "I-PER", 3: "LOC"}
    settings = {"id2label": labels, "label2id": {v: k for k, v in labels.items()}, **settings}
    return save(BertForTokenClassification(tiny_config(**settings)), folder)


def tiny_ranker(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(7)
    settings = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}, **settings}
    return save(BertForSequenceClassification(tiny_config(**settings)), folder)


def tiny_image_classifier(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(7)
    labels = {0: "cat", 1: "dog", 2: "fish"}
    defaults: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 16,
        "patch_size": 8,
        "initializer_range": 0.5,
        "id2label": labels,
        "label2id": {v: k for k, v in labels.items()},
    }
    model = ViTForImageClassification(ViTConfig(**{**defaults, **settings}))
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def run(handler: ModelHandler[Any, Any], requests: Iterable[Any]) -> list[Any]:
    """Send requests through a loaded handler as one batch, without a server."""
    outputs = handler.infer([handler.preprocess(request) for request in requests])
    return [handler.postprocess(output) for output in outputs]


def loaded(handler: HandlerT, **context: Any) -> HandlerT:
    handler.context = Context(**{"batching": handler.batching, **context})
    handler.load()
    return handler
