"""Picture in, label out: the handler for image classifiers, and a pattern for other modalities."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from mlserve.errors import ConfigurationError
from mlserve.execution.devices import available_cores
from mlserve.handler import ModelHandler
from mlserve.huggingface._checkpoint import Checkpoint
from mlserve.huggingface._devices import (
    Dtype,
    encoder_replicas,
    image_batching,
    place,
    to_device,
)
from mlserve.huggingface._images import MAX_PIXELS, as_png, decode_image
from mlserve.huggingface.classification import (
    Classification,
    check_top_k,
    classification_of,
    scores_of,
)
from mlserve.observability.loggers import get_logger
from mlserve.payloads import Upload

__all__ = ["ImageClassification", "ImageClassificationRequest"]

logger = get_logger(__name__)


class ImageClassificationRequest(BaseModel):
    """One picture: as a form, or as the body itself with its `Content-Type`."""

    model_config = ConfigDict(extra="forbid")

    image: Upload


class ImageClassification(ModelHandler[ImageClassificationRequest, Classification]):
    """
    Serve an image classifier: a picture becomes a label with a score.

    Pictures are JPEG, PNG, WebP, GIF or BMP, and are decoded and resized one at a time, beside the
    model. By default there is one single-threaded replica per CPU core, at most four, or one
    replica on the first CUDA device; an instance gives one replica only, so hand the server a class
    or a `functools.partial`.

    Args:
        model: A hub id, or a local folder. Only safetensors weights are read and no code of the
            model is run.
        revision: The hub's branch, tag or commit; a commit pins the model.
        dtype: `"auto"` is float32 on CPU, and bfloat16 on CUDA devices that compute in it.
        top_k: How many labels to give in `scores`; `None` = only the best one, without `scores`.
        max_pixels: Larger pictures are refused before they are decoded.
        model_kwargs: Further arguments of `from_pretrained`, such as `attn_implementation`, or
            `quantization_config` with `device_map`.
        compile: Whether `torch.compile` makes faster code of the model, which the first batches
            of warm-up then wait for.

    Raises:
        ConfigurationError: If an argument is wrong or the folder does not exist, on creation; if
            the model is unsafe, incomplete or no image classifier, in `load`.

    Example:
        model = "google/vit-base-patch16-224"
        server.add("animals", functools.partial(ImageClassification, model, top_k=3))
    """

    batching = image_batching(torch.cuda.device_count())
    replicas = encoder_replicas(torch.cuda.device_count(), available_cores())

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: Dtype = "auto",
        top_k: int | None = None,
        max_pixels: int = MAX_PIXELS,
        model_kwargs: Mapping[str, Any] | None = None,
        compile: bool = False,  # noqa: A002 - as torch has it
    ) -> None:
        check_top_k(top_k)
        if type(max_pixels) is not int or max_pixels < 1:
            raise ConfigurationError(
                f"`max_pixels` must be a whole number of at least 1, got {max_pixels!r}."
            )
        self.top_k = top_k
        self.max_pixels = max_pixels
        self.checkpoint = Checkpoint(
            model, revision=revision, dtype=dtype, model_kwargs=model_kwargs
        )
        self.processor: Any = None
        """The transformers image processor; `None` unless loaded."""
        self.model: Any = None
        """The transformers model in evaluation mode; `None` unless loaded."""
        self._run: Any = None
        self._compile = compile

    def load(self) -> None:
        """
        Open the model on the replica's device.

        Raises:
            ConfigurationError: If the model is unsafe, incomplete, or no image classifier.
        """
        device, dtype = place(self.context, self.checkpoint.dtype)
        self.context.progress(0.1, "reading the image processor and the weights")
        self.processor, self.model = self.checkpoint.load(
            AutoModelForImageClassification,
            dtype=dtype,
            device=device,
            readers=(AutoImageProcessor,),
        )
        self._run = torch.compile(self.model, dynamic=True) if self._compile else self.model
        logger.info(
            "image_classifier.load.completed", extra={"device": str(device), "dtype": str(dtype)}
        )

    def examples(self) -> list[ImageClassificationRequest]:
        """Give a small grey picture."""
        png = as_png(Image.new("RGB", (64, 48), (128, 128, 128)))
        return [ImageClassificationRequest(image=Upload(png, "image/png", "grey.png"))]

    def preprocess(self, request: ImageClassificationRequest) -> Tensor:
        """
        Decode the picture and bring it into the model's form.

        Returns:
            float32, shape (channels, height, width), in ordinary memory.

        Raises:
            InvalidInputError: If it is no picture that can be read, or too large.
        """
        image = decode_image(request.image.content, max_pixels=self.max_pixels, param="image")
        pixels: Tensor = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def batch_key(self, item: Tensor) -> tuple[int, ...]:
        """Keep pictures of different sizes apart, for processors that do not resize to one."""
        return tuple(item.shape)

    def infer(self, inputs: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
        """
        Run a batch.

        Returns:
            For each picture the scores of all labels: float32, shape (labels,), on the host.
        """
        with torch.inference_mode():
            pixels = to_device({"pixels": torch.stack(list(inputs))}, self.model.device)["pixels"]
            output = self._run(pixel_values=pixels.to(self.model.dtype))
            scores = scores_of(output.logits, self.model.config.problem_type)
            # One copy to the host for the whole batch; it also waits for the device.
            return list(scores.cpu().numpy())

    def postprocess(self, output: np.ndarray[Any, Any]) -> Classification:
        """Make the response: the best label, and the `top_k` best where asked for."""
        return classification_of(output, self.model.config.id2label, self.top_k)

    def unload(self) -> None:
        """Free the model and give its memory back to the device; does nothing when not loaded."""
        on_cuda = self.model is not None and self.model.device.type == "cuda"
        self.processor = self.model = self._run = None
        if on_cuda:
            torch.cuda.empty_cache()
