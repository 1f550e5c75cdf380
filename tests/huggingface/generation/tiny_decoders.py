"""Tiny decoders with random weights, whose greedy answers vary all the same."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

N_VOCAB = 512  # more logits than there are tokens, as models have
MAX_LENGTH = 256
CHAT = (
    "{# It would write <tool_call>{…}</tool_call>, could it write. #}"
    "{% for message in messages %}<start>{{ message.role }}\n{{ message.content }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Give a tokenizer of bytes, so that a character may be several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<start>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([json.dumps({"name": "Ada", "age": 36})] * 3, trainer)
    fast: type[Any] = PreTrainedTokenizerFast
    names = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>"}
    tokenizer: PreTrainedTokenizerFast = fast(tokenizer_object=made, **names)
    tokenizer.chat_template = CHAT
    return tokenizer


def _llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def _qwen() -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE))


def _gpt2() -> Any:
    sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": MAX_LENGTH}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=N_VOCAB, initializer_range=0.15, **sizes, **ids)  # type: ignore[arg-type]
    )


def _windowed() -> Any:
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8))


def _eager() -> Any:
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, "attn_implementation": "eager"}))


KINDS = {
    "llama": _llama,
    "qwen": _qwen,
    "gpt2": _gpt2,
    "windowed": _windowed,
    "eager": _eager,
}


@cache
def tiny_decoder(kind: str) -> Any:
    """Give a model in evaluation mode, float32; the same one each time."""
    torch.manual_seed(7)
    return KINDS[kind]().eval()


def save_tiny(kind: str, folder: Path) -> Path:
    """Write a model as a real one is published."""
    tiny_decoder(kind).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def generated(model: Any, prompt: list[int], n: int) -> list[int]:
    """Give what `generate()` writes, greedily, for one prompt alone."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            do_sample=False,
            eos_token_id=None,
        )
    return list(map(int, out[0, len(prompt) :].tolist()))
