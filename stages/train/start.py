"""What a training begins with: weights drawn by ``model.init``, or those of a model folder.

A folder's tokenizer may have fewer ids than the training's: ``stages.tokenizer.adopt`` puts the
control tokens after its own. Their rows of the embedding and of the head begin as the mean of the
folder's rows (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models": no
new token is then more probable than an average one). The folder's rows beyond its own tokenizer's
ids pad a matrix to a round size, and are left out.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from model.config import DRAWN, ModelConfig
from stages.errors import SettingsError
from stages.files import sha256_file

if TYPE_CHECKING:
    from torch import Tensor

    from model.transformer import Transformer

TOKENIZER_FILE = "tokenizer.json"
BY_TOKEN = ("embedding.weight", "head.weight")


def check_start(init_from: str, config: ModelConfig, tokenizer: Path) -> None:
    """Raises SettingsError for a folder whose weights mean nothing in this training."""
    if init_from == DRAWN:
        return
    from model.reading import load_model
    from model.vocabulary import check_grown, number_of_ids

    folder = Path(init_from)
    try:
        held = load_model(folder).config
        if not (folder / TOKENIZER_FILE).is_file():
            raise FileNotFoundError(f"no {TOKENIZER_FILE} in '{folder}'")
        known = number_of_ids(folder / TOKENIZER_FILE)
    except (OSError, ValueError) as error:
        raise SettingsError(f"train.init_from: '{init_from}' is no model folder: {error}") from None
    if known > held.vocab_size:
        raise SettingsError(
            f"train.init_from: the tokenizer of '{init_from}' has {known:,} ids, its model "
            f"{held.vocab_size:,}"
        )
    try:
        check_grown(folder / TOKENIZER_FILE, tokenizer / TOKENIZER_FILE)
    except ValueError as error:
        raise SettingsError(
            f"train.init_from: the tokenizer of '{init_from}' is not that of {tokenizer} "
            f"({error}): set tokenizer.path to '{init_from}'"
        ) from None
    if known > config.vocab_size:
        raise SettingsError(
            f"train.init_from: the tokenizer of '{init_from}' has {known:,} ids, {tokenizer} "
            f"{config.vocab_size:,}"
        )


def start_weights(model: "Transformer", init_from: str) -> None:
    """Puts the weights of a model folder into ``model``; those drawn stay as they are."""
    if init_from == DRAWN:
        return
    from model.reading import load_model
    from model.vocabulary import number_of_ids

    state = load_model(init_from).state_dict()
    known = number_of_ids(Path(init_from) / TOKENIZER_FILE)
    for name in BY_TOKEN:
        state[name] = _rows(state[name], known, model.config.vocab_size)
    model.load_state_dict(state)


def _rows(weight: "Tensor", known: int, vocab_size: int) -> "Tensor":
    """The first ``known`` rows of ``weight`` (rows, d_model), and their mean for every id after."""
    import torch

    own = weight[:known]
    return torch.cat([own, own.mean(0).expand(vocab_size - known, -1)])


def start_sum(init_from: str) -> str:
    """What tells one beginning from another: sums of a folder's files."""
    if init_from == DRAWN:
        return DRAWN
    folder = Path(init_from)
    files = [folder / "config.json", folder / TOKENIZER_FILE, *sorted(folder.glob("*.safetensors"))]
    return " ".join(sha256_file(file) for file in files)
