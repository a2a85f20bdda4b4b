"""A corpus of any size in the shape of LMSYS-Chat-1M: its columns, its lengths, invented chats.

Contents are stretches of the embedded data, so that words are as frequent as in real chats.
Lengths are log-normal: in tokens a median of 345 and a mean of 547, as Zheng et al. (2024) and our
own count of the English part have it; one conversation has 1.5 million.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from stages.download.sources import embedded_rows

CHARS_PER_TOKEN = 4.2
MEDIAN, SIGMA, LONGEST = 345, 0.96, 1_500_000  # tokens
FILES, GROUP = 6, 1_000
CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "self-harm"),
    *("self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence"),
    "violence/graphic",
)
LANGUAGES = ["English"] * 78 + ["Portuguese", "Russian", "Chinese", "Spanish"] * 4 + ["unknown"] * 6
MODELS = ["vicuna-13b", "koala-13b", "alpaca-13b", "gpt-4", "claude-1", "llama-2-13b-chat"]


def write(folder: Path, conversations: int, seed: int = 1) -> int:
    """Writes parquet files of so many conversations; the characters of all their contents."""
    folder.mkdir(parents=True)
    source = _text()
    draw = random.Random(seed)
    characters = 0
    longest = draw.randrange(conversations)
    for number in range(FILES):
        rows = range(conversations * number // FILES, conversations * (number + 1) // FILES)
        writer = None
        for first in range(rows.start, rows.stop, GROUP):
            group = []
            for index in range(first, min(first + GROUP, rows.stop)):
                row = _row(index, source, draw, LONGEST if index == longest else None)
                characters += sum(len(message["content"]) for message in row["conversation"])
                group.append(row)
            table = pyarrow.Table.from_pylist(group)
            if writer is None:
                path = folder / f"train-{number:05d}-of-{FILES:05d}.parquet"
                writer = pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
    return characters


def _text() -> str:
    return "\n".join(_sayings())


def _sayings() -> Iterator[str]:
    for _, row in embedded_rows():
        for turn in row["chitchat"]:  # type: ignore[index]
            for message in turn:
                yield message["text"]


def _row(index: int, source: str, draw: random.Random, tokens: int | None) -> dict[str, Any]:
    tokens = tokens or max(8, round(draw.lognormvariate(0, SIGMA) * MEDIAN))
    turns = 2 * max(1, min(20, round(draw.expovariate(1 / 2))))
    conversation = []
    for turn in range(turns):
        # A question is a fifth of what is said.
        share = (0.2 if turn % 2 == 0 else 0.8) * 2 / turns
        length = max(2, round(tokens * share * CHARS_PER_TOKEN))
        start = draw.randrange(max(1, len(source) - min(length, len(source) // 2)))
        content = source[start : start + length]
        while len(content) < length:
            content += source[: length - len(content)]
        role = "assistant" if turn % 2 else "user"
        conversation.append({"content": content, "role": role})
    flagged = draw.random() < 0.03
    return {
        "conversation_id": f"{draw.getrandbits(128):032x}",
        "model": draw.choice(MODELS),
        "conversation": conversation,
        "turn": turns // 2,
        "language": draw.choice(LANGUAGES),
        "openai_moderation": [
            {
                "categories": dict.fromkeys(CATEGORIES, False),
                "category_scores": {name: draw.random() * 1e-3 for name in CATEGORIES},
                "flagged": flagged,
            }
            for _ in range(turns)
        ],
        "redacted": draw.random() < 0.1,
    }
