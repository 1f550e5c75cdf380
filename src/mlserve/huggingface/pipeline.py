"""Any of many pipelines of transformers, from JSON to JSON."""

import base64
import binascii
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.pipelines import SUPPORTED_TASKS as _SUPPORTED_TASKS
from transformers.pipelines import pipeline
from transformers.pipelines.base import PipelineException

from mlserve.errors import ConfigurationError, InvalidInputError
from mlserve.execution.devices import available_cores
from mlserve.handler import ModelHandler
from mlserve.huggingface._checkpoint import Checkpoint
from mlserve.huggingface._devices import (
    Dtype,
    encoder_replicas,
    padded_budget,
    place,
)
from mlserve.huggingface._encoder import n_positions, resolve_max_length
from mlserve.huggingface._images import as_png, decode_image
from mlserve.settings import Batching
from mlserve.tasks.text import MAX_CHARACTERS

__all__ = ["Pipeline", "PipelineRequest"]

SUPPORTED_TASKS: dict[str, Any] = _SUPPORTED_TASKS
make_pipeline: Any = pipeline  # its overloads name each task
# What says how a pipeline is opened, which is not for `parameters` to say.
_RESERVED = frozenset(inspect.signature(pipeline).parameters) | {"batch_size", "num_workers"}

_CHARACTERS_PER_TOKEN = 4  # of English, about
_MAX_BASE64 = 24 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """How one of the pipelines is opened and fed."""

    image: bool = False
    """Whether its inputs are pictures; else they are texts."""
    one_by_one: bool = False
    """Whether its inputs may have different shapes, so that they do not share runs."""
    unused: tuple[str, ...] = ()
    """Prefixes of weights that are not used."""
    needs: tuple[str, ...] = ()
    """Parameters that must be given."""


# Those that answer with JSON and, of what a client sends, open neither files nor addresses.
TASKS: dict[str, _Task] = {
    "feature-extraction": _Task(unused=("pooler.",)),
    "fill-mask": _Task(),
    "image-classification": _Task(image=True),
    "image-feature-extraction": _Task(image=True, unused=("pooler.",)),
    "object-detection": _Task(image=True, one_by_one=True),
    "text-classification": _Task(),
    "token-classification": _Task(),
    "zero-shot-classification": _Task(needs=("candidate_labels",)),
}


class PipelineRequest(BaseModel):
    """One input; send several requests at once for several inputs, they share batches."""

    model_config = ConfigDict(extra="forbid")

    inputs: Annotated[
        str,
        Field(
            min_length=1,
            max_length=_MAX_BASE64,
            description="The text or, for tasks with pictures, the file in base64.",
        ),
    ]


class Pipeline(ModelHandler[PipelineRequest, Any]):
    """
    Serve a pipeline of transformers; the answer is what the pipeline gives.

    Tasks: `feature-extraction`, `fill-mask`, `image-classification`, `image-feature-extraction`,
    `object-detection`, `text-classification`, `token-classification` and
    `zero-shot-classification`. Where there is a class for a task, such as `TextClassification`, it
    does more requests per second, since it tokenises while the model runs.

    Texts of similar length share a batch. A text that the model cannot read whole is refused, not
    cut. Clients choose the input only, since parameters of pipelines can name files and code.

    Args:
        task: The pipeline's name.
        model: A hub id, or a local folder. Only safetensors weights are read and no code of the
            model is run.
        revision: The hub's branch, tag or commit; a commit pins the model.
        dtype: `"auto"` is float32 on CPU, and bfloat16 on CUDA devices that compute in it.
        parameters: What the pipeline takes beside its input, such as `top_k` or
            `candidate_labels`; the same for all requests.
        examples: Inputs for warm-up and OpenAPI; needed for `fill-mask` only, whose texts hold a
            mask that each model spells in its own way.
        model_kwargs: Further arguments of `from_pretrained`, such as `attn_implementation`, or
            `quantization_config` with `device_map`.

    Raises:
        ConfigurationError: If an argument is wrong or the folder does not exist, on creation; if
            the model is unsafe, incomplete or does not fit the task, in `load`.

    Example:
        server.add("mask", functools.partial(Pipeline, "fill-mask", "org/name"))
    """

    batching = Batching(
        max_size=32,
        max_cost=_CHARACTERS_PER_TOKEN * padded_budget(torch.cuda.device_count()),
        padded=True,
    )
    replicas = encoder_replicas(torch.cuda.device_count(), available_cores())

    def __init__(
        self,
        task: str,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: Dtype = "auto",
        parameters: Mapping[str, Any] | None = None,
        examples: Sequence[str] = (),
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if task not in TASKS:
            raise ConfigurationError(f"`task` must be one of {', '.join(TASKS)}, got {task!r}.")
        self.task = task
        self.parameters = dict(parameters or {})
        if reserved := _RESERVED & self.parameters.keys():
            raise ConfigurationError(f"`parameters` cannot hold {sorted(reserved)}.")
        if missing := [name for name in TASKS[task].needs if not self.parameters.get(name)]:
            raise ConfigurationError(f"Task {task!r} needs {missing} in `parameters`.")
        self.checkpoint = Checkpoint(
            model, revision=revision, dtype=dtype, model_kwargs=model_kwargs
        )
        self.pipeline: Any = None
        """The pipeline of transformers; `None` unless loaded."""
        self._examples = list(examples)
        self._max_length = 0

    def load(self) -> None:
        """
        Open the model on the replica's device.

        Raises:
            ConfigurationError: If the model is unsafe, incomplete, or does not fit the task, or if
                the pipeline does not take one of `parameters`.
        """
        task = TASKS[self.task]
        device, dtype = place(self.context, self.checkpoint.dtype)
        reader: Any = AutoImageProcessor if task.image else AutoTokenizer
        opened, model = self.checkpoint.load(
            SUPPORTED_TASKS[self.task]["pt"][0],
            dtype=dtype,
            device=device,
            optional_weights=task.unused,
            readers=(reader,),
        )
        part = {"image_processor" if task.image else "tokenizer": opened}
        # A model that `device_map` has placed must not be moved.
        where = {} if "device_map" in self.checkpoint.model_kwargs else {"device": device}
        try:
            self.pipeline = make_pipeline(
                self.task, model, trust_remote_code=False, **part, **where, **self.parameters
            )
        except (TypeError, ValueError) as exc:
            raise ConfigurationError(
                f"The pipeline {self.task!r} does not take these `parameters`: {exc}"
            ) from exc
        if not task.image:
            self._read_limits(self.pipeline.tokenizer, model)

    def _read_limits(self, tokenizer: Any, model: torch.nn.Module) -> None:
        if tokenizer.pad_token_id is None:
            raise ConfigurationError(
                f"The tokenizer of model {self.checkpoint.name!r} has no padding token, so texts"
                " cannot share a batch."
            )
        self._max_length = resolve_max_length(
            None, positions=n_positions(model), advised=(tokenizer.model_max_length,)
        )

    def examples(self) -> list[PipelineRequest]:
        """Give the inputs that were given, or a simple one."""
        if self._examples or self.task == "fill-mask":
            return [PipelineRequest(inputs=each) for each in self._examples]
        if TASKS[self.task].image:
            png = as_png(Image.new("RGB", (64, 48), (128, 128, 128)))
            return [PipelineRequest(inputs=base64.b64encode(png).decode())]
        sentence = "A batch holds requests that were waiting when the model got free."
        return [PipelineRequest(inputs=sentence), PipelineRequest(inputs="Hello!")]

    def preprocess(self, request: PipelineRequest) -> str | Image.Image:
        """
        Check a text, decode a picture.

        A picture is never given as text: the pipeline would take that for a file or an address.

        Raises:
            InvalidInputError: If it is too long or no picture.
        """
        if TASKS[self.task].image:
            try:
                content = base64.b64decode(request.inputs, validate=True)
            except (ValueError, binascii.Error):
                raise InvalidInputError("`inputs` is not base64.", param="inputs") from None
            return decode_image(content, param="inputs")
        try:
            request.inputs.encode()
        except UnicodeEncodeError:
            raise InvalidInputError(
                "`inputs` holds half a surrogate pair.", param="inputs"
            ) from None
        if len(request.inputs) > MAX_CHARACTERS:
            raise InvalidInputError(
                f"`inputs` has more than {MAX_CHARACTERS} characters.", param="inputs"
            )
        return request.inputs

    def cost(self, item: str | Image.Image) -> int:
        """Count a text's characters, since its tokens are not known yet."""
        return len(item) if isinstance(item, str) else 1

    def infer(self, inputs: Sequence[str | Image.Image]) -> list[Any]:
        """Run a batch through the pipeline; what the model cannot take gets an exception."""
        faults = [self._fault(item) for item in inputs]
        answers = iter(self._run([x for x, fault in zip(inputs, faults, strict=True) if not fault]))
        return [fault or next(answers) for fault in faults]

    def _fault(self, item: str | Image.Image) -> InvalidInputError | None:
        if not isinstance(item, str):
            return None
        # Not in `preprocess`: a tokenizer must not be used by two threads.
        ids = self.pipeline.tokenizer(item)["input_ids"]
        if len(ids) > self._max_length:
            return InvalidInputError(
                f"`inputs` has {len(ids)} tokens; the model reads at most {self._max_length}.",
                param="inputs",
            )
        # On CUDA an id without an embedding would end the device for every later request.
        n_vocabulary = getattr(self.pipeline.model.config, "vocab_size", None)
        if n_vocabulary is not None and max(ids, default=0) >= n_vocabulary:
            return InvalidInputError("`inputs` holds a token unknown to the model.", param="inputs")
        return None

    def _run(self, inputs: list[str | Image.Image]) -> list[Any]:
        if not inputs:
            return []
        batch_size = 1 if TASKS[self.task].one_by_one else len(inputs)
        try:
            # A generator: of a list with one item some pipelines give the answer without a list.
            return list(self.pipeline((each for each in inputs), batch_size=batch_size))
        except (ValueError, PipelineException) as exc:
            if len(inputs) > 1:  # the batch is split, and this one found
                raise
            error = InvalidInputError("The model cannot take this input.", param="inputs")
            error.__cause__ = exc
            return [error]

    def unload(self) -> None:
        """Free the model and give its memory back to the device; does nothing when not loaded."""
        on_cuda = self.pipeline is not None and self.pipeline.device.type == "cuda"
        self.pipeline = None
        if on_cuda:
            torch.cuda.empty_cache()
