"""What is refused before anything of a model is opened, and what is said of it."""

import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.huggingface.tiny_models import (
    edit_json,
    loaded,
    run,
    tiny_classifier,
    tiny_encoder,
    tiny_image_classifier,
    tiny_ranker,
    tiny_tagger,
)
from transformers.utils import logging as transformers_logging

from mlserve.errors import ConfigurationError
from mlserve.handler import ModelHandler
from mlserve.huggingface import (
    ImageClassification,
    Pipeline,
    Reranking,
    TextClassification,
    TextEmbedding,
    TokenClassification,
)
from mlserve.huggingface._checkpoint import refuse_unsafe
from mlserve.huggingface._devices import Dtype


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def plant(folder: Path, name: str, canary: Path) -> None:
    (folder / name).write_bytes(pickle.dumps({"weight": Canary(canary)}))


def test_the_canary_of_these_tests_sings(tmp_path: Path) -> None:
    plant(tmp_path, "weights.bin", tmp_path / "canary")

    pickle.loads((tmp_path / "weights.bin").read_bytes())  # noqa: S301 - our own file

    assert (tmp_path / "canary").exists()


@dataclass(frozen=True)
class Case:
    """A handler and the tiny model that it takes."""

    make_model: Callable[[Path], Path]
    make: Callable[..., ModelHandler[Any, Any]]


CASES = {
    "ImageClassification": Case(tiny_image_classifier, ImageClassification),
    "Pipeline of texts": Case(tiny_classifier, partial(Pipeline, "text-classification")),
    "Pipeline of pictures": Case(tiny_image_classifier, partial(Pipeline, "image-classification")),
    "Reranking": Case(tiny_ranker, Reranking),
    "TextClassification": Case(tiny_classifier, TextClassification),
    "TextEmbedding": Case(tiny_encoder, TextEmbedding),
    "TokenClassification": Case(tiny_tagger, TokenClassification),
}


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def folder(case: Case, tmp_path: Path) -> Path:
    return case.make_model(tmp_path / "model")


def test_a_pickle_beside_the_weights_is_never_read(
    case: Case, folder: Path, tmp_path: Path
) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "model.pkl"):
        plant(folder, name, tmp_path / "canary")

    handler = loaded(case.make(folder))

    assert run(handler, handler.examples())
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.bin", "adapter_model.bin", "pytorch_model.pt"]
)
def test_a_model_with_nothing_but_pickles_is_refused(
    case: Case, folder: Path, tmp_path: Path, name: str
) -> None:
    (folder / "model.safetensors").unlink()
    plant(folder, name, tmp_path / "canary")

    with pytest.raises(ConfigurationError, match="weights as safetensors"):
        loaded(case.make(folder))

    assert not (tmp_path / "canary").exists()


def test_weights_that_the_configuration_names_must_be_safetensors(
    case: Case, folder: Path, tmp_path: Path
) -> None:
    edit_json(folder / "config.json", transformers_weights="adapter_model.bin")
    plant(folder, "adapter_model.bin", tmp_path / "canary")

    with pytest.raises(ConfigurationError, match="not safetensors"):
        loaded(case.make(folder))

    assert not (tmp_path / "canary").exists()


def test_weights_in_several_files_must_all_be_safetensors(
    case: Case, folder: Path, tmp_path: Path
) -> None:
    (folder / "model.safetensors").unlink()
    part = "pytorch_model-00001-of-00001.bin"
    edit_json(
        folder / "model.safetensors.index.json",
        metadata={},
        weight_map={"classifier.weight": part},
    )
    plant(folder, part, tmp_path / "canary")

    with pytest.raises(ConfigurationError, match="not safetensors"):
        loaded(case.make(folder))

    assert not (tmp_path / "canary").exists()


def test_weights_in_several_files_are_read(classifier: Path) -> None:
    whole = loaded(TextClassification(classifier)).encoder.model
    (classifier / "model.safetensors").unlink()
    whole.save_pretrained(classifier, max_shard_size="2KB")
    assert (classifier / "model.safetensors.index.json").exists()

    parts = loaded(TextClassification(classifier)).encoder.model

    assert torch.equal(parts.classifier.weight, whole.classifier.weight)


@pytest.mark.parametrize(
    "filename",
    ["config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"],
)
def test_a_model_that_brings_code_is_refused_and_the_code_not_run(
    case: Case, folder: Path, tmp_path: Path, filename: str
) -> None:
    code = f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\nclass Own: pass\n"
    (folder / "own.py").write_text(code, encoding="utf-8")
    names = [
        *("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor"),
        *("AutoModelForSequenceClassification", "AutoModelForTokenClassification"),
        "AutoModelForImageClassification",
    ]
    edit_json(folder / filename, auto_map=dict.fromkeys(names, "own.Own"))

    with pytest.raises(ConfigurationError, match=r"`auto_map`.*never run"):
        loaded(case.make(folder))

    assert not (tmp_path / "canary").exists()


def test_a_model_that_brings_a_pipeline_of_its_own_is_refused(case: Case, folder: Path) -> None:
    own = {"text-classification": {"impl": "own.Own", "pt": ["AutoModel"]}}
    edit_json(folder / "config.json", custom_pipelines=own)

    with pytest.raises(ConfigurationError, match=r"`custom_pipelines`.*never run"):
        loaded(case.make(folder))


def test_code_is_found_at_any_depth_of_a_configuration() -> None:
    with pytest.raises(ConfigurationError, match="auto_map"):
        refuse_unsafe("org/name", {"parts": [{"text_config": {"auto_map": {"AutoModel": "a.B"}}}]})


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_that_asks_for_a_kernel_from_the_hub_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match="kernel"):
        refuse_unsafe("org/name", {key: "somebody/kernel"})


def test_an_ordinary_configuration_is_let_through() -> None:
    settings = {"attn_implementation": "sdpa", "transformers_weights": "a.safetensors"}

    refuse_unsafe("org/name", {**settings, "auto_map": None})


def test_an_adapter_is_refused(classifier: Path) -> None:
    edit_json(classifier / "adapter_config.json", peft_type="LORA")

    with pytest.raises(ConfigurationError, match="LoRA"):
        loaded(TextClassification(classifier))


def test_a_folder_that_does_not_exist_is_named_on_creation(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"existing folder, got .*nowhere"):
        case.make(tmp_path / "nowhere")


@pytest.mark.parametrize("model", ["", "./nowhere", "/nowhere/at/all", "~/nowhere/at/all"])
def test_a_text_that_can_only_be_a_folder_is_checked_too(model: str) -> None:
    with pytest.raises(ConfigurationError, match="existing folder"):
        TextEmbedding(model)


@pytest.mark.parametrize("filename", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_named_without_its_path(classifier: Path, filename: str) -> None:
    (classifier / filename).unlink()

    with pytest.raises(ConfigurationError, match="Model 'classifier' cannot be opened") as caught:
        loaded(TextClassification(classifier))

    assert str(classifier) not in str(caught.value)


@pytest.mark.parametrize("config_too", [True, False])
def test_a_folder_without_a_vocabulary_is_refused(classifier: Path, config_too: bool) -> None:
    """Transformers would make a tokenizer of its own that knows no word."""
    (classifier / "tokenizer.json").unlink()
    if config_too:
        (classifier / "tokenizer_config.json").unlink()

    with pytest.raises(ConfigurationError, match=r"has no vocabulary|cannot be opened"):
        loaded(TextClassification(classifier))


def test_random_weights_are_never_served(encoder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"lacks weights .* `classifier\.bias`"):
        loaded(TextClassification(encoder))


def test_an_unknown_dtype_is_refused(classifier: Path) -> None:
    with pytest.raises(ConfigurationError, match="`dtype` must be one of auto, float32"):
        TextClassification(classifier, dtype="int3")  # type: ignore[arg-type] # what is tested


@pytest.mark.parametrize(
    "key", ["trust_remote_code", "use_safetensors", "weights_only", "revision", "dtype"]
)
def test_the_safe_settings_cannot_be_changed(case: Case, folder: Path, key: str) -> None:
    with pytest.raises(ConfigurationError, match=key):
        case.make(folder, model_kwargs={key: True})


def test_further_settings_reach_transformers(classifier: Path) -> None:
    handler = TextClassification(classifier, model_kwargs={"attn_implementation": "eager"})

    config = loaded(handler).encoder.model.config

    assert config._attn_implementation == "eager"


def test_the_dtype_is_that_of_the_weights(classifier: Path) -> None:
    assert loaded(TextClassification(classifier)).encoder.model.dtype is torch.float32
    assert (
        loaded(TextClassification(classifier, dtype="bfloat16")).encoder.model.dtype
        is torch.bfloat16
    )


def test_loading_says_nothing_and_leaves_transformers_as_it_was(
    classifier: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit_json(classifier / "config.json", problem_type=None)
    verbosity = transformers_logging.get_verbosity()
    has_bars = transformers_logging.is_progress_bar_enabled()

    loaded(TextEmbedding(classifier))

    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled() == has_bars


def test_replicas_that_load_at_once_get_the_dtype_that_each_asked_for(classifier: Path) -> None:
    """Transformers sets torch's default dtype while it loads, for all threads."""
    dtypes: list[Dtype] = ["float32", "bfloat16"] * 4
    handlers = [TextClassification(classifier, dtype=dtype) for dtype in dtypes]

    with ThreadPoolExecutor(len(handlers)) as threads:
        models = [handler.encoder.model for handler in threads.map(loaded, handlers, timeout=15)]

    assert [str(model.dtype) for model in models] == [f"torch.{dtype}" for dtype in dtypes]
    assert torch.get_default_dtype() is torch.float32


def test_a_failed_load_leaves_transformers_as_it_was(classifier: Path) -> None:
    has_bars = transformers_logging.is_progress_bar_enabled()
    (classifier / "model.safetensors").unlink()

    with pytest.raises(ConfigurationError):
        loaded(TextClassification(classifier))

    assert transformers_logging.is_progress_bar_enabled() == has_bars


def test_a_file_beside_the_weights_that_holds_no_object_counts_as_none(encoder: Path) -> None:
    (encoder / "sentence_bert_config.json").write_text(json.dumps([1]), encoding="utf-8")

    assert loaded(TextEmbedding(encoder)).encoder.max_length == 32
