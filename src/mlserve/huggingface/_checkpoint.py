"""
A model on disk or on the hub: checked first, then opened without running any code it brings.

Weights are read from safetensors files only, custom code (`auto_map`) and kernels named by a
configuration are refused, and so are adapters (LoRA).
"""

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from mlserve.errors import ConfigurationError
from mlserve.huggingface._devices import DTYPES

__all__ = ["Checkpoint", "quiet_turn", "refuse_unsafe"]

OWN_PARAMETERS = frozenset({"dtype", "revision", "torch_dtype"})
FIXED_KWARGS = frozenset(
    {
        "adapter_kwargs",
        "config",
        "gguf_file",
        "output_loading_info",
        "state_dict",
        "subfolder",
        "trust_remote_code",
        "use_safetensors",
        "variant",
        "weights_only",
    }
)
# Where weights that are split over several files say in which file each one is.
INDEX_FILE = "model.safetensors.index.json"
CODE_KEYS = ("auto_map", "custom_pipelines")
KERNEL_KEYS = frozenset({"attn_implementation", "_attn_implementation"})
# What transformers reads beside the weights, and where code may be named.
SETTINGS_FILES = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")

# transformers changes state of the whole process while it loads (default dtype, weight
# initialisation, and here its log level), so replicas take turns.
_loading = threading.Lock()


@contextmanager
def quiet_turn() -> Iterator[None]:
    """Wait for the turn to load, and keep transformers' bars and reports off the console."""
    with _loading:
        verbosity = transformers_logging.get_verbosity()
        had_bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # untyped there
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped there
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if had_bars:
                transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # untyped there


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """Walk through every JSON object in a JSON value, outermost first."""
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _mappings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _mappings(inner)


def refuse_unsafe(name: str, settings: Mapping[str, Any]) -> None:
    """
    Refuse a model whose configuration would have code or pickles loaded.

    Args:
        name: What to call the model in the message.
        settings: What its `config.json` or one of the files beside it holds.

    Raises:
        ConfigurationError: If it names custom code, a kernel on the hub, or weights that are not
            safetensors.
    """
    for part in _mappings(settings):
        if key := next((key for key in CODE_KEYS if part.get(key)), None):
            raise ConfigurationError(
                f"Model {name!r} brings Python code of its own (`{key}` in its configuration),"
                " and such code is never run. Use a model whose architecture is part of"
                " transformers, or write a `ModelHandler` that loads it."
            )
        if any("/" in str(part.get(key) or "") for key in KERNEL_KEYS):
            raise ConfigurationError(
                f"Model {name!r} asks in its configuration for an attention kernel from the hub,"
                " which is code. Remove that entry; `model_kwargs` may choose another one."
            )
    weights = settings.get("transformers_weights")
    if weights is not None and not str(weights).endswith(
        (".safetensors", ".safetensors.index.json")
    ):
        raise ConfigurationError(
            f"Model {name!r} names weight files that are not safetensors; only those are read."
        )


class Checkpoint:
    """
    Which model to open, and how. Nothing is read before one of the methods is called.

    Args:
        model: A hub id such as `org/name`, or a local folder.
        revision: The hub's branch, tag or commit; a commit pins the model.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        model_kwargs: Further arguments of `from_pretrained`, such as `attn_implementation`.

    Raises:
        ConfigurationError: If an argument cannot be right, or a folder does not exist.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: str = "auto",
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        is_folder = not isinstance(model, str) or model.startswith(("/", "./", "../", "~"))
        source = os.path.expanduser(os.fspath(model))
        if not source or (is_folder and not os.path.isdir(source)):
            raise ConfigurationError(
                f"`model` must be a hub id or an existing folder, got {os.fspath(model)!r}."
            )
        if dtype not in DTYPES:
            raise ConfigurationError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        self.source = source
        """The hub id or folder, as transformers takes it."""
        self.name = Path(source).name if os.path.isdir(source) else source
        """The hub id, or the folder's own name without the path to it."""
        self.revision = revision
        self.dtype = dtype
        self.model_kwargs = dict(model_kwargs or {})
        self._refuse_kwargs()

    def _refuse_kwargs(self) -> None:
        if taken := OWN_PARAMETERS & self.model_kwargs.keys():
            raise ConfigurationError(
                f"`model_kwargs` holds {sorted(taken)}, which the handler has parameters for."
                " Use `revision=` and `dtype=`."
            )
        if fixed := FIXED_KWARGS & self.model_kwargs.keys():
            raise ConfigurationError(
                f"`model_kwargs` holds {sorted(fixed)}, which cannot be changed here. Write a"
                " `ModelHandler` that loads the model in its own way."
            )

    def _locate(self, filename: str) -> str | None:
        """Give the local path of one of the model's files; `None` when it has no such file."""
        path: str | None = cached_file(
            self.source,
            filename,
            revision=self.revision or "main",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return path

    def read_json(self, filename: str) -> dict[str, Any]:
        """Read a JSON file that lies beside the weights; `{}` when there is none."""
        path = self._locate(filename)
        if path is None:
            return {}
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}

    def load(
        self,
        auto_class: Any,
        *,
        dtype: torch.dtype,
        device: torch.device,
        optional_weights: Sequence[str] = (),
        readers: Sequence[Any] = (AutoTokenizer,),
    ) -> tuple[Any, ...]:
        """
        Check the model and open it. Runs in the replica's thread; replicas take turns.

        Args:
            auto_class: The class that opens the weights, such as `transformers.AutoModel`.
            dtype: The weights' dtype.
            device: Where the weights go, unless `model_kwargs` holds a `device_map`.
            optional_weights: Prefixes of weights that may be missing, since they are not used.
            readers: The classes that open what turns requests into inputs, such as
                `transformers.AutoImageProcessor`.

        Returns:
            What each of `readers` opened, and last the model, in evaluation mode.

        Raises:
            ConfigurationError: If the model is unsafe, incomplete or cannot be found.
        """
        with quiet_turn():
            try:
                self._check()
                shared = {"revision": self.revision or "main", "trust_remote_code": False}
                config = AutoConfig.from_pretrained(self.source, **shared)
                opened = [
                    reader.from_pretrained(self.source, config=config, **shared)
                    for reader in readers
                ]
                self._refuse_empty(opened)
                model, report = auto_class.from_pretrained(
                    self.source,
                    config=config,
                    dtype=dtype,
                    use_safetensors=True,
                    output_loading_info=True,
                    **shared,
                    **self.model_kwargs,
                )
            except ConfigurationError:
                raise
            except (OSError, ValueError) as exc:
                raise ConfigurationError(
                    f"Model {self.name!r} cannot be opened: it must have a configuration that"
                    " transformers knows, a tokenizer or image processor as its task needs, and"
                    " weights as safetensors. Other weight files, such as pickles ending in"
                    " `.bin`, are never read."
                ) from exc
        missing = [
            key for key in report["missing_keys"] if not key.startswith(tuple(optional_weights))
        ]
        if missing:
            raise ConfigurationError(
                f"Model {self.name!r} lacks weights that it needs for this task, among them"
                f" `{min(missing)}`; they would be random. Use a model trained for the task."
            )
        if "device_map" not in self.model_kwargs:
            model.to(device)
        return *opened, model.eval()

    def _check(self) -> None:
        settings, _ = PreTrainedConfig.get_config_dict(self.source, revision=self.revision)
        refuse_unsafe(self.name, settings)
        for filename in SETTINGS_FILES:
            refuse_unsafe(self.name, self.read_json(filename))
        weights = str(settings.get("transformers_weights") or INDEX_FILE)
        index = self.read_json(weights) if weights.endswith(".json") else {}
        for part in dict(index.get("weight_map") or {}).values():
            refuse_unsafe(self.name, {"transformers_weights": part})
        if self.read_json("adapter_config.json"):
            raise ConfigurationError(
                f"Model {self.name!r} is or holds an adapter (LoRA), which is not supported."
                " Merge it into its base model and save that."
            )

    def _refuse_empty(self, opened: Sequence[Any]) -> None:
        # Without any file, transformers makes a tokenizer that reads every word as unknown.
        for reader in opened:
            names = getattr(reader, "vocab_files_names", {}).values()
            if names and not any(self._locate(name) for name in names):
                raise ConfigurationError(
                    f"Model {self.name!r} has no vocabulary; one of these files must lie beside"
                    f" its weights: {', '.join(f'`{name}`' for name in names)}."
                )

    def __repr__(self) -> str:
        return f"<Checkpoint {self.name} {self.dtype}>"
