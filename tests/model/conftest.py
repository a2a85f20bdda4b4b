"""Fixtures of the tests of ``model/``."""

import os

# Nothing here may ask a network; transformers reads this when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.tokenizer import ChatTokenizer
from tests.model.tiny import CORPUS


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained_tokenizer() -> ChatTokenizer:
    """A small tokenizer as ``train`` returns it."""
    return ChatTokenizer.train(iter(CORPUS), 320)


@pytest.fixture(scope="session")
def tokenizer_folder(
    trained_tokenizer: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that the small tokenizer's ``save`` writes; not to be changed."""
    folder = tmp_path_factory.mktemp("tokenizer")
    trained_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> ChatTokenizer:
    """The small tokenizer as ``load`` opens it."""
    return ChatTokenizer.load(tokenizer_folder)
