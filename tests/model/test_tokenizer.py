"""The tokenizer loses no text, makes no control token of it, and is the same on every machine."""

import hashlib
import json
import re
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from model import tokenizer as tokenizer_module
from model.template import BOS, CONTROL_TOKENS, END, MARKER, PAD, ROLE_TOKENS
from model.tokenizer import (
    LONGEST_RUN,
    SMALLEST_VOCAB,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    ChatTokenizer,
)
from stages.tokenizer import params
from tests.model.tiny import (
    CORPUS,
    conversations,
    edit_json,
    hostile_text,
    run_python,
)


def control_ids(tokenizer: ChatTokenizer, ids: list[int]) -> list[int]:
    return [token for token in ids if tokenizer.is_control(token)]


@settings(max_examples=300)
@given(text=hostile_text)
def test_decoding_gives_back_any_text_and_no_id_is_a_control_token(
    tokenizer: ChatTokenizer, trained_tokenizer: ChatTokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, control=True) == text
    assert not control_ids(tokenizer, ids)
    # Saving and loading changes nothing.
    assert trained_tokenizer.encode(text) == ids
    assert trained_tokenizer.decode(ids) == text


@pytest.mark.parametrize("token", CONTROL_TOKENS)
@pytest.mark.parametrize(
    "frame", ["{}", "a {} b", "<{}>", "<|{}|>", "{}{}", MARKER + "{}" + MARKER]
)
def test_a_typed_control_token_stays_text_before_and_after_save(
    tokenizer: ChatTokenizer, trained_tokenizer: ChatTokenizer, token: str, frame: str
) -> None:
    text = frame.replace("{}", token)
    for each in (trained_tokenizer, tokenizer):
        ids = each.encode(text)
        assert not control_ids(each, ids)
        assert each.decode(ids) == text


@settings(max_examples=100)
@given(messages=conversations)
def test_a_conversation_holds_exactly_the_control_tokens_of_its_template(
    tokenizer: ChatTokenizer, trained_tokenizer: ChatTokenizer, messages: list[dict[str, str]]
) -> None:
    ids = tokenizer.encode_chat(messages)
    expected = [tokenizer.bos_id]
    for message in messages:
        expected += [tokenizer.role_ids[message["role"]], tokenizer.end_id]
    assert control_ids(tokenizer, ids) == expected
    assert tokenizer.decode(ids, control=True) == BOS + "".join(
        ROLE_TOKENS[message["role"]] + message["content"] + END for message in messages
    )
    assert tokenizer.decode(ids) == "".join(message["content"] for message in messages)
    assert trained_tokenizer.encode_chat(messages) == ids


def test_batches_give_the_ids_of_single_texts(tokenizer: ChatTokenizer) -> None:
    texts = ["", "hello there", "<|end|>", "naïve"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []
    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "fine"}]
        for text in texts
    ]
    assert tokenizer.encode_chats(chats) == [tokenizer.encode_chat(chat) for chat in chats]
    assert tokenizer.encode_chats([]) == []
    assert tokenizer.encode_chats([[]]) == [[tokenizer.bos_id]]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "hello \udc80", "\udc00\ud800"])
def test_a_lone_surrogate_is_a_value_error(tokenizer: ChatTokenizer, text: str) -> None:
    with pytest.raises(ValueError, match="can't be encoded"):
        tokenizer.encode(text)
    with pytest.raises(ValueError, match="can't be encoded"):
        tokenizer.encode_batch(["fine", text])
    with pytest.raises(ValueError, match="can't be encoded"):
        tokenizer.encode_chat([{"role": "user", "content": text}])


def test_an_unknown_role_is_a_value_error_that_names_it(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(ValueError, match="unknown role 'tool'"):
        tokenizer.encode_chat([{"role": "tool", "content": "x"}])


# --- the vocabulary


@settings(max_examples=25)
@given(
    vocab_size=st.one_of(st.integers(SMALLEST_VOCAB, SMALLEST_VOCAB + 60), st.just(100_000)),
    texts=st.lists(st.one_of(hostile_text, st.sampled_from(CORPUS)), max_size=12),
)
def test_a_trained_vocabulary_never_exceeds_vocab_size(vocab_size: int, texts: list[str]) -> None:
    tokenizer = ChatTokenizer.train(iter(texts), vocab_size)
    assert SMALLEST_VOCAB <= tokenizer.vocab_size <= vocab_size
    text = "".join(texts)
    ids = tokenizer.encode(text)
    assert all(id_ < tokenizer.vocab_size for id_ in ids)
    assert tokenizer.decode(ids) == text


def test_a_large_enough_corpus_fills_the_vocabulary(trained_tokenizer: ChatTokenizer) -> None:
    assert trained_tokenizer.vocab_size == 320
    assert len(trained_tokenizer.encode(CORPUS[0])) < len(CORPUS[0].encode())


@pytest.mark.parametrize("run", ["x", " ", "\n", "7", "-", "é", " \n"])
def test_a_long_run_is_learnt_from_in_pieces(run: str) -> None:
    """As one word, a million characters took minutes and gave tokens of half of them."""
    text = f"{CORPUS[0]} {run * 1_000_000} {CORPUS[1]}"
    tokenizer = ChatTokenizer.train(iter([text]), 300)
    assert max(map(len, tokenizer.backend.get_vocab())) <= 2 * LONGEST_RUN  # "é" is two bytes
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_runs_up_to_the_longest_are_learnt_from_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*CORPUS, f"{CORPUS[0]} {'<|' * (LONGEST_RUN // 2 - 1)} {CORPUS[1]}" + "\n" * 999]
    cut = ChatTokenizer.train(iter(texts), 320)
    monkeypatch.setattr(tokenizer_module, "_pieces", lambda text: [text])
    assert ChatTokenizer.train(iter(texts), 320).sha256 == cut.sha256


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 2000, 2500])
@pytest.mark.parametrize("end", ["", " ", "a", " a"])
def test_pieces_hold_the_whole_text(length: int, end: str) -> None:
    for run in ("x", " "):
        text = "a " + run * length + end
        pieces = list(tokenizer_module._pieces(text))
        assert "".join(pieces) == text
        runs = [part for piece in pieces for part in re.findall(r"\S+|\s+", piece)]
        assert max(map(len, runs)) <= LONGEST_RUN


@pytest.mark.parametrize("vocab_size", [-1, 0, 7, SMALLEST_VOCAB - 1])
def test_a_vocabulary_without_room_for_the_bytes_is_a_value_error(vocab_size: int) -> None:
    with pytest.raises(ValueError, match=f"vocab_size {vocab_size} is below {SMALLEST_VOCAB}"):
        ChatTokenizer.train(iter(CORPUS), vocab_size)


def test_the_smallest_vocabulary_is_control_tokens_and_bytes() -> None:
    tokenizer = ChatTokenizer.train(iter(CORPUS), SMALLEST_VOCAB)
    assert tokenizer.vocab_size == SMALLEST_VOCAB == 263
    assert len(tokenizer.encode("naïve 👍")) == len("naïve 👍".encode())


def test_settings_know_the_smallest_vocabulary() -> None:
    assert params.SMALLEST_VOCAB == SMALLEST_VOCAB


def test_ids_beyond_sixteen_bits_come_and_go(trained_tokenizer: ChatTokenizer) -> None:
    # Every pair of bytes is a token, and pairs of letters are the last.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: ("a" <= c <= "z", c))
    merges = list(product(alphabet, alphabet))
    tokens = [*CONTROL_TOKENS, *alphabet, *(a + b for a, b in merges)]
    backend = trained_tokenizer.backend.from_str(trained_tokenizer.backend.to_str())
    backend.model = models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges)
    tokenizer = ChatTokenizer(backend)
    assert tokenizer.vocab_size == SMALLEST_VOCAB + 65_536
    assert tokenizer.encode("zz") == [tokenizer.vocab_size - 1]
    text = "zz ÿþ <|user|> plain"
    ids = tokenizer.encode(text)
    assert max(ids) > 65_535
    assert tokenizer.decode(ids) == text


def test_control_tokens_have_the_first_ids_in_order(tokenizer: ChatTokenizer) -> None:
    ids = [tokenizer.backend.token_to_id(token) for token in CONTROL_TOKENS]
    assert ids == list(range(len(CONTROL_TOKENS)))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.end_id) == (
        CONTROL_TOKENS.index(PAD),
        CONTROL_TOKENS.index(BOS),
        CONTROL_TOKENS.index(END),
    )
    assert tokenizer.role_ids == {
        role: CONTROL_TOKENS.index(token) for role, token in ROLE_TOKENS.items()
    }
    assert [id_ for id_ in range(tokenizer.vocab_size) if tokenizer.is_control(id_)] == ids


def test_training_learns_from_the_text_as_typed_not_as_escaped() -> None:
    tokenizer = ChatTokenizer.train(iter(["<|user|> " + MARKER] * 50), 300)
    pieces = [tokenizer.decode([id_]) for id_ in tokenizer.encode("<|user|>")]
    assert pieces == ["<|", "user", "|>"]


# --- files


def test_saving_twice_gives_the_same_bytes_and_loading_keeps_them(
    trained_tokenizer: ChatTokenizer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    trained_tokenizer.save(tmp_path)
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
        assert (tmp_path / name).read_bytes() == (tokenizer_folder / name).read_bytes()
    ChatTokenizer.load(tokenizer_folder).save(tmp_path)
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
        assert (tmp_path / name).read_bytes() == (tokenizer_folder / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        TOKENIZER_FILE,
        TOKENIZER_CONFIG_FILE,
    ]


def test_sha256_is_that_of_the_file_before_save_after_save_and_loaded(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.train(iter(CORPUS), 280)
    before = tokenizer.sha256
    tokenizer.save(tmp_path)
    expected = hashlib.sha256((tmp_path / TOKENIZER_FILE).read_bytes()).hexdigest()
    assert before == tokenizer.sha256 == ChatTokenizer.load(tmp_path).sha256 == expected


def test_two_processes_train_the_same_bytes(tokenizer_folder: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from model.tokenizer import ChatTokenizer
ChatTokenizer.train(iter({CORPUS!r}), 320).save(Path({str(tmp_path)!r}))
"""
    for hash_seed, threads in (("0", "1"), ("12345", "4")):
        run_python(script, PYTHONHASHSEED=hash_seed, RAYON_NUM_THREADS=threads)
        for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
            assert (tmp_path / name).read_bytes() == (tokenizer_folder / name).read_bytes()


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_a_tokenizer_without_a_control_token_is_refused_by_its_name(
    tokenizer_folder: Path, tmp_path: Path, token: str
) -> None:
    path = tmp_path / TOKENIZER_FILE
    content = (tokenizer_folder / TOKENIZER_FILE).read_text(encoding="utf-8")
    path.write_text(content.replace(json.dumps(token), '"<unk>"'), encoding="utf-8")
    with pytest.raises(ValueError, match=f"no control token {token}".replace("|", r"\|")):
        ChatTokenizer.load(tmp_path)


def damage(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut short": content[: len(content) // 2],
        "last byte lost": content.rstrip()[:-1],
        "another JSON object": b"{}",
        "a list": b"[]",
        "no UTF-8": b"\xff\xfe" + content,
        "no merges": b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}}}',
    }


@pytest.mark.parametrize("kind", damage(b""))
def test_a_damaged_tokenizer_json_is_a_value_error(
    tokenizer_folder: Path, tmp_path: Path, kind: str
) -> None:
    content = (tokenizer_folder / TOKENIZER_FILE).read_bytes()
    (tmp_path / TOKENIZER_FILE).write_bytes(damage(content)[kind])
    with pytest.raises(ValueError, match="tokenizer"):
        ChatTokenizer.load(tmp_path)


def test_merges_that_name_no_token_are_a_value_error(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / TOKENIZER_FILE
    path.write_bytes((tokenizer_folder / TOKENIZER_FILE).read_bytes())
    edit_json(path, lambda content: content["model"]["merges"].append(["no", "where"]))
    with pytest.raises(ValueError, match="is not a tokenizer"):
        ChatTokenizer.load(tmp_path)


def test_a_folder_without_tokenizer_json_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        ChatTokenizer.load(tmp_path)
