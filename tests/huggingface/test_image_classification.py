"""`ImageClassification` against plain transformers, on a tiny random vision transformer."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.huggingface.tiny_models import loaded, run
from transformers import AutoImageProcessor, AutoModelForImageClassification

from mlserve import ModelServer, Replicas, Upload
from mlserve.errors import ConfigurationError, InvalidInputError
from mlserve.huggingface import ImageClassification, ImageClassificationRequest
from mlserve.huggingface._images import as_png
from mlserve.testing import running

COLOURS = ["red", "green", "black"]


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def request(image: Image.Image) -> ImageClassificationRequest:
    return ImageClassificationRequest(image=Upload(as_png(image), "image/png"))


def plain_scores(folder: Path, image: Image.Image) -> dict[str, float]:
    auto: Any = AutoImageProcessor
    processor = auto.from_pretrained(folder)
    model: Any = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        scores = model(**processor(image, return_tensors="pt")).logits[0].softmax(-1)
    return dict(zip(model.config.id2label.values(), scores.tolist(), strict=True))


def test_scores_equal_those_of_plain_transformers(image_classifier: Path) -> None:
    handler = loaded(ImageClassification(image_classifier, top_k=3))
    images = [picture(colour, size) for colour in COLOURS for size in ((40, 30), (7, 90))]

    answers = run(handler, map(request, images))

    for image, answer in zip(images, answers, strict=True):
        expected = plain_scores(image_classifier, image)
        assert {s.label: s.score for s in answer.scores} == pytest.approx(expected, abs=1e-5)
        assert answer.label == max(expected, key=lambda label: expected[label])
    assert len({answer.score for answer in answers}) == len(COLOURS)


def test_without_top_k_there_is_the_best_label_only(image_classifier: Path) -> None:
    [answer] = run(loaded(ImageClassification(image_classifier)), [request(picture("red"))])

    assert answer.scores is None


def test_what_is_no_picture_is_the_clients_mistake(image_classifier: Path) -> None:
    handler = loaded(ImageClassification(image_classifier))

    with pytest.raises(InvalidInputError, match="no picture") as caught:
        handler.preprocess(ImageClassificationRequest(image=Upload(b"GIF89a and no more")))

    assert caught.value.param == "image"


def test_a_picture_that_is_too_large_is_refused(image_classifier: Path) -> None:
    handler = loaded(ImageClassification(image_classifier, max_pixels=100))

    with pytest.raises(InvalidInputError, match="at most 100"):
        handler.preprocess(request(picture("red")))


@pytest.mark.parametrize("options", [{"max_pixels": 0}, {"max_pixels": True}, {"top_k": 0}])
def test_wrong_options_are_refused_on_creation(
    image_classifier: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        ImageClassification(image_classifier, **options)


def test_pictures_of_different_sizes_share_no_batch_where_they_are_not_resized(
    image_classifier: Path,
) -> None:
    handler = loaded(ImageClassification(image_classifier))
    small, wide = torch.zeros(3, 16, 16), torch.zeros(3, 16, 32)

    assert handler.batch_key(small) == handler.batch_key(small.clone())
    assert handler.batch_key(small) != handler.batch_key(wide)


def test_the_dtype_of_the_pictures_is_that_of_the_weights(image_classifier: Path) -> None:
    handler = loaded(ImageClassification(image_classifier, dtype="bfloat16"))

    [answer] = run(handler, [request(picture("red"))])

    assert handler.model.dtype is torch.bfloat16
    assert type(answer.score) is float


def test_a_compiled_model_is_what_runs(
    image_classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def fake_compile(model: torch.nn.Module, *, dynamic: bool) -> torch.nn.Module:
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", fake_compile)
    handler = loaded(ImageClassification(image_classifier, compile=True))

    assert run(handler, handler.examples())
    assert compiled == [handler.model]


def test_the_model_is_freed_by_unload(image_classifier: Path) -> None:
    handler = loaded(ImageClassification(image_classifier))
    run(handler, handler.examples())
    model = weakref.ref(handler.model)

    handler.unload()
    handler.unload()

    gc.collect()
    assert model() is None


@pytest.mark.slow
def test_pictures_are_taken_by_http_as_form_and_as_body(
    image_classifier: Path, n_threads: int
) -> None:
    server = ModelServer()
    server.add("image", ImageClassification(image_classifier), replicas=Replicas(devices=["cpu"]))
    png, url = as_png(picture("red")), "/v1/models/image/predict"

    with running(server) as client:
        form = client.post(url, files={"image": ("a.png", png, "image/png")})
        body = client.post(url, content=png, headers={"Content-Type": "image/png"})
        refused = client.post(url, content=b"none", headers={"Content-Type": "image/png"})

    assert form.json() == body.json()
    assert form.json()["label"] in {"cat", "dog", "fish"}
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "image")
