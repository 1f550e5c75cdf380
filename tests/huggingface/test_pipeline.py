"""`Pipeline` against the pipelines of transformers, on tiny random models."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.huggingface.tiny_models import (
    MAX_POSITIONS,
    loaded,
    run,
    save,
    tiny_classifier,
    tiny_config,
    tiny_encoder,
    tiny_image_classifier,
    tiny_tagger,
)
from transformers import (
    BertForMaskedLM,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
    pipeline,
)

from mlserve.errors import ConfigurationError, InvalidInputError
from mlserve.huggingface import Pipeline, PipelineRequest
from mlserve.huggingface._images import as_png
from mlserve.huggingface.pipeline import TASKS

TEXTS = ["bad", "a good film", "the film is long and the end is bad"]
MASKED = ["the [MASK] film", "a [MASK]"]


def tiny_filler(folder: Path) -> Path:
    torch.manual_seed(7)
    model = BertForMaskedLM(tiny_config(vocab_size=17))
    return save(model, folder, mask_token="[MASK]")  # noqa: S106 - no password


def tiny_entailer(folder: Path) -> Path:
    names = {0: "contradiction", 1: "entailment"}
    return tiny_classifier(folder, id2label=names, label2id={v: k for k, v in names.items()})


def tiny_detector(folder: Path) -> Path:
    torch.manual_seed(7)
    YolosForObjectDetection(
        YolosConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=[16, 16],
            patch_size=8,
            num_detection_tokens=3,
            initializer_range=0.5,
        )
    ).save_pretrained(folder)
    YolosImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def pictures() -> list[str]:
    images = [Image.new("RGB", size, "red") for size in ((40, 30), (8, 60))]
    return [base64.b64encode(as_png(image)).decode() for image in images]


def close(value: Any) -> Any:
    """Compare numbers at any depth with a tolerance."""
    if isinstance(value, dict):
        return {key: close(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [close(inner) for inner in value]
    return (
        pytest.approx(float(value), abs=1e-4) if isinstance(value, float | np.floating) else value
    )


def requests(inputs: list[str]) -> list[PipelineRequest]:
    return [PipelineRequest(inputs=each) for each in inputs]


CASES: list[tuple[str, Callable[[Path], Path], list[str], dict[str, Any]]] = [
    ("feature-extraction", tiny_encoder, TEXTS[1:2], {}),
    ("fill-mask", tiny_filler, MASKED, {"top_k": 2}),
    ("image-classification", tiny_image_classifier, pictures(), {"top_k": 2}),
    ("image-feature-extraction", tiny_image_classifier, pictures(), {}),
    ("text-classification", tiny_classifier, TEXTS, {}),
    ("text-classification", tiny_classifier, TEXTS, {"top_k": 2}),
    ("token-classification", tiny_tagger, TEXTS, {"aggregation_strategy": "simple"}),
    ("zero-shot-classification", tiny_entailer, TEXTS, {"candidate_labels": ["good", "bad"]}),
]


@pytest.mark.parametrize(("task", "make", "inputs", "parameters"), CASES)
def test_answers_equal_those_of_the_pipeline_of_transformers(
    tmp_path: Path,
    task: str,
    make: Callable[[Path], Path],
    inputs: list[str],
    parameters: dict[str, Any],
) -> None:
    folder = make(tmp_path)
    make_plain: Any = pipeline
    plain = make_plain(task, str(folder), device="cpu", **parameters)
    handler = loaded(Pipeline(task, folder, parameters=parameters))

    together = run(handler, requests(inputs))

    # A list of two: of one, some pipelines give the answer without a list.
    alone = [plain([each, each])[0] for each in inputs]
    assert [close(answer) for answer in together] == alone
    assert [run(handler, requests([each]))[0] for each in inputs] == [close(a) for a in alone]


def test_pictures_of_any_size_are_searched_for_objects(tmp_path: Path) -> None:
    handler = Pipeline("object-detection", tiny_detector(tmp_path), parameters={"threshold": 0.0})

    answers = run(loaded(handler), requests(pictures()))

    assert [len(answer) for answer in answers] == [3, 3]
    assert set(answers[0][0]) == {"score", "label", "box"}


@pytest.mark.parametrize(
    "inputs", ["/etc/hostname", "http://127.0.0.1:1/a.png", "file:///etc/hostname", "QUJD"]
)
def test_a_picture_is_never_a_path_or_an_address(image_classifier: Path, inputs: str) -> None:
    handler = loaded(Pipeline("image-classification", image_classifier))

    with pytest.raises(InvalidInputError, match=r"base64|no picture") as caught:
        handler.preprocess(PipelineRequest(inputs=inputs))

    assert caught.value.param == "inputs"


def test_a_text_that_is_too_long_fails_alone_and_in_words(classifier: Path) -> None:
    handler = loaded(Pipeline("text-classification", classifier))
    inputs = ["good film", "good " * MAX_POSITIONS, "bad"]

    good, long, bad = handler.infer(inputs)

    assert isinstance(long, InvalidInputError)
    assert f"reads at most {MAX_POSITIONS}" in str(long)
    assert [good["label"], bad["label"]] == [
        each["label"] for each in handler.infer(["good film", "bad"])
    ]


def test_a_token_that_the_model_has_no_vector_for_fails_alone(tmp_path: Path) -> None:
    handler = loaded(Pipeline("text-classification", tiny_classifier(tmp_path, vocab_size=8)))

    good, unknown = handler.infer(["a good film", "the end"])

    assert "label" in good
    assert isinstance(unknown, InvalidInputError)


def test_what_the_pipeline_refuses_is_the_clients_mistake(tmp_path: Path) -> None:
    handler = loaded(Pipeline("fill-mask", tiny_filler(tmp_path)))

    [answer] = handler.infer(["no mask in it"])

    assert isinstance(answer, InvalidInputError)


@pytest.mark.parametrize("text", ["good \ud800", "a" * 40_000])
def test_a_text_that_cannot_be_read_is_refused(classifier: Path, text: str) -> None:
    handler = loaded(Pipeline("text-classification", classifier))

    with pytest.raises(InvalidInputError):
        handler.preprocess(PipelineRequest.model_construct(inputs=text))


@pytest.mark.parametrize("task", ["text-generation", "automatic-speech-recognition", "none"])
def test_other_tasks_are_refused_with_those_that_there_are(classifier: Path, task: str) -> None:
    with pytest.raises(ConfigurationError, match="one of feature-extraction, fill-mask"):
        Pipeline(task, classifier)


def test_labels_that_a_task_needs_are_asked_for(classifier: Path) -> None:
    with pytest.raises(ConfigurationError, match="candidate_labels"):
        Pipeline("zero-shot-classification", classifier)


@pytest.mark.parametrize(
    "name", ["trust_remote_code", "model_kwargs", "tokenizer", "feature_extractor", "num_workers"]
)
def test_parameters_cannot_say_how_the_pipeline_is_opened(classifier: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Pipeline("text-classification", classifier, parameters={name: True})


def test_parameters_that_the_pipeline_does_not_take_are_refused(tagger: Path) -> None:
    handler = Pipeline("token-classification", tagger, parameters={"no_such_parameter": 3})

    with pytest.raises(ConfigurationError, match="does not take"):
        loaded(handler)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_one_of_transformers_with_one_class_of_models(task: str) -> None:
    from transformers.pipelines import SUPPORTED_TASKS

    known: Any = SUPPORTED_TASKS[task]

    assert len(known["pt"]) == 1


def test_examples_fit_the_task(classifier: Path, image_classifier: Path) -> None:
    for handler in (
        Pipeline("text-classification", classifier),
        Pipeline("image-classification", image_classifier),
    ):
        assert run(loaded(handler), handler.examples())


def test_examples_of_the_user_are_taken(classifier: Path) -> None:
    assert Pipeline("fill-mask", classifier).examples() == []
    given = Pipeline("fill-mask", classifier, examples=MASKED).examples()
    assert [each.inputs for each in given] == MASKED


def test_the_model_is_freed_by_unload(classifier: Path) -> None:
    handler = loaded(Pipeline("text-classification", classifier))

    handler.unload()
    handler.unload()

    assert handler.pipeline is None
