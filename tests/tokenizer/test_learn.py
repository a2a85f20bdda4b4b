"""Learning from a sample: fair, within its bounds, and the same in any order."""

import random
from pathlib import Path

import pytest

from stages.conversations import Message, read_split
from stages.errors import DataError
from stages.tokenizer import learn as module
from tests.builders import chats, write_conversations


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the vocabulary is learnt from; nothing is learnt."""
    texts: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        module.ChatTokenizer, "train", lambda read, vocab_size: texts.extend(read) or None
    )
    return texts


def write(train: list[list[Message]]) -> int:
    write_conversations(Path(), {"train": train, "validation": []})
    return sum(len(message["content"]) for chat in train for message in chat)


def test_all_is_read_where_there_is_no_more_than_the_most(seen: list[str]) -> None:
    corpus = chats(200, 1)
    size = write(corpus)
    assert module.learn(300, size)[1] == size
    assert seen == [message["content"] for chat in corpus for message in chat]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_sample_is_fair_and_has_at_most_so_many_characters(seen: list[str], share: float) -> None:
    corpus = chats(3000, 2)
    size = write(corpus)
    most = int(size * share)
    learnt = module.learn(300, most)[1]
    assert sum(map(len, seen)) == learnt <= most
    assert learnt > 0.9 * most
    # From the whole of the corpus, not from its beginning.
    texts = [chat[0]["content"] for chat in corpus if len(chat[0]["content"]) > 30]
    halves = [sum(t in set(seen) for t in half) for half in (texts[: len(texts) // 2],
              texts[len(texts) // 2 :])]  # fmt: skip
    assert halves[1] > 0.7 * halves[0]


def test_a_sample_depends_on_no_order(seen: list[str]) -> None:
    corpus = chats(500, 3)
    size = write(corpus)
    # Far enough from the most that it does not end the sample.
    module.learn(300, size // 2)
    first = sorted(seen)
    seen.clear()
    random.Random(1).shuffle(corpus)
    write(corpus)
    module.learn(300, size // 2)
    assert len(set(first) & set(seen)) > 0.9 * len(set(first))


def test_a_conversation_longer_than_the_most_is_read_as_far(seen: list[str]) -> None:
    write([[{"role": "text", "content": "abc " * 1000}]])
    assert module.learn(300, 3999)[1] == 3999
    assert "".join(seen) == ("abc " * 1000)[:3999]


def test_lines_outside_the_sample_are_not_read_closely(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"messages": [{"role": "text", "content": "a"}]}\nbroken\n')
    assert len(list(read_split("train", tmp_path, lambda line: b"broken" not in line))) == 1
    with pytest.raises(DataError, match=r"train\.jsonl:2 is not a conversation"):
        list(read_split("train", tmp_path))


def test_a_damaged_manifest_is_named(seen: list[str]) -> None:
    write(chats(3, 1))
    Path("data/conversations/manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"manifest\.json is missing or damaged"):
        module.learn(300, 10)
