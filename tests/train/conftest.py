"""Data that the tests of training share, and no long measurement of the machine."""

from pathlib import Path

import pytest

from stages.train import meter
from tests.builders import build_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations, tokenizer and shards; nothing is to be changed there."""
    return build_data(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _small_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without float16 products takes half a minute for those of the real size."""
    monkeypatch.setattr(meter, "GEMM_SIZE", 64)
    monkeypatch.setattr(meter, "GEMM_SECONDS", 0.0)
