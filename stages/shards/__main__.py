"""The shards stage: data/conversations + data/tokenizer -> data/shards, metrics/shards.json and
metrics/lengths.csv."""

from stages.conversations import Split, read_split
from stages.corpus import SplitCounts
from stages.errors import run
from stages.params import read
from stages.shards.build import build, load_tokenizer
from stages.shards.encode import ShardWriter, encode_split, make_encode
from stages.shards.params import ShardsParams
from stages.workers import use_in_tokenizers, workers


def main() -> None:
    params = read("shards", ShardsParams)
    threads = workers()
    use_in_tokenizers(threads)
    tokenizer = load_tokenizer()
    encode = make_encode(tokenizer)

    def fill(split: Split, writer: ShardWriter) -> SplitCounts:
        return encode_split(read_split(split), tokenizer, encode, writer, threads)

    build(params, tokenizer, fill)


if __name__ == "__main__":
    run("shards", main)
