"""Models that the tests of the adapters share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.huggingface.tiny_models import tiny_classifier, tiny_encoder


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return tiny_classifier(tmp_path / "classifier")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return tiny_encoder(tmp_path / "encoder")


@pytest.fixture
def n_threads() -> Iterator[int]:
    """Torch's number of compute threads, which is put back afterwards."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)
