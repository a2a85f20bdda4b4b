"""The tokenizer stage: data/conversations -> data/tokenizer and metrics/tokenizer.json."""

from pathlib import Path
from typing import Any

from model.tokenizer import ChatTokenizer
from stages.errors import run
from stages.files import output_folder, write_json
from stages.params import read
from stages.progress import say
from stages.tokenizer.measures import on_samples, on_validation
from stages.tokenizer.params import LEARNT, TokenizerParams
from stages.workers import use_in_tokenizers, workers

FOLDER = Path("data/tokenizer")
METRICS = Path("metrics/tokenizer.json")


def main() -> None:
    params = read("tokenizer", TokenizerParams)
    use_in_tokenizers(workers())
    tokenizer, metrics = make(params)
    metrics = {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": on_validation(tokenizer),
        "bytes_per_token_on": on_samples(tokenizer),
        **metrics,
    }
    with output_folder(FOLDER) as folder:
        tokenizer.save(folder)
        write_json(METRICS, metrics)


def make(params: TokenizerParams) -> tuple[ChatTokenizer, dict[str, Any]]:
    """The tokenizer that ``params`` ask for, and what its metrics say of where it is from."""
    if params.path != LEARNT:
        from stages.tokenizer.adopt import adopt

        return adopt(Path(params.path)), {}
    from stages.tokenizer.learn import learn

    tokenizer, learnt = learn(params.vocab_size, params.max_chars)
    if tokenizer.vocab_size < params.vocab_size:
        say(
            f"tokenizer: the corpus is too small for tokenizer.vocab_size {params.vocab_size:,}: "
            f"the vocabulary has {tokenizer.vocab_size:,} ids"
        )
    return tokenizer, {"learnt_from_characters": learnt}


if __name__ == "__main__":
    run("tokenizer", main)
