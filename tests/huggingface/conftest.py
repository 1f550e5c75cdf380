"""Models that the tests of the adapters share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.huggingface.tiny_models import (
    tiny_classifier,
    tiny_encoder,
    tiny_image_classifier,
    tiny_ranker,
    tiny_tagger,
)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return tiny_classifier(tmp_path / "classifier")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return tiny_encoder(tmp_path / "encoder")


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    return tiny_tagger(tmp_path / "tagger")


@pytest.fixture
def ranker(tmp_path: Path) -> Path:
    return tiny_ranker(tmp_path / "ranker")


@pytest.fixture
def image_classifier(tmp_path: Path) -> Path:
    return tiny_image_classifier(tmp_path / "image_classifier")


@pytest.fixture
def n_threads() -> Iterator[int]:
    """Torch's number of compute threads, which is put back afterwards."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)
