"""Tokenizers that were learnt elsewhere: their ids stay, and what Parley promises of one holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer

from model.template import CONTROL_TOKENS
from model.tokenizer import ChatTokenizer
from stages.errors import SettingsError
from stages.shards.ranks import NotTheSame, encoder_of
from stages.tokenizer.adopt import adopt
from tests.builders import (
    call_stage,
    chats,
    contents,
    error_lines,
    exit_code,
    run_stage,
    tiny_params,
    write_conversations,
    write_params,
)

TEXTS = [message["content"] for chat in chats(80, 1) for message in chat]
LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def learnt(special: list[str], alphabet: bool = True, words: Any = None) -> Tokenizer:
    """A byte-level BPE as other projects learn one, its special tokens first or after."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = words or pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet else [],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def gpt2() -> Tokenizer:
    """As GPT-2's: one special token, the last of the vocabulary."""
    backend = learnt([])
    content = json.loads(backend.to_str())
    content["model"]["vocab"]["<|endoftext|>"] = len(content["model"]["vocab"])
    backend = Tokenizer.from_str(json.dumps(content))
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def llama3() -> Tokenizer:
    """As Llama 3's: whole words before merges, special tokens outside the vocabulary."""
    split = pre_tokenizers.Split(Regex(LLAMA_WORDS), "isolated")
    cut = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    content = json.loads(learnt([], words=cut).to_str())
    content["model"]["ignore_merges"] = True
    backend = Tokenizer.from_str(json.dumps(content))
    backend.add_special_tokens(["<|begin_of_text|>", "</s>", "<|end|>", "WORD"])
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 400)]
    )
    backend.enable_truncation(7)
    backend.enable_padding(length=9)
    return backend


def qwen() -> Tokenizer:
    """As Qwen's: text is normalised before it is encoded."""
    backend = learnt(["<s>", "<pad>"])
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return backend


def neox() -> Tokenizer:
    """As GPT-NeoX's: runs of spaces are added tokens of text; few bytes of its own."""
    backend = learnt(["<|padding|>"], alphabet=False)
    backend.add_tokens([AddedToken(" " * n, normalized=True) for n in (2, 4, 8)])
    backend.add_tokens([AddedToken("<tag>", lstrip=True, rstrip=True, normalized=False)])
    return backend


KINDS: list[Callable[[], Tokenizer]] = [gpt2, llama3, qwen, neox]
SPECIAL = ["<|endoftext|>", "<|begin_of_text|>", "</s>", "WORD", "<s>", "<pad>", "<|padding|>"]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, ChatTokenizer]:
    """A tokenizer from elsewhere, and what becomes of it after a save and load."""
    folder = tmp_path_factory.mktemp("own")
    backend = request.param()
    backend.save(str(folder / "tokenizer.json"))
    adopted = adopt(folder)
    saved = folder / "saved"
    saved.mkdir()
    adopted.save(saved)
    loaded = ChatTokenizer.load(saved)
    assert loaded.sha256 == adopted.sha256
    return backend, loaded


def test_ids_stay_and_control_tokens_come_after(pair: tuple[Tokenizer, ChatTokenizer]) -> None:
    backend, tokenizer = pair
    before = backend.get_vocab(with_added_tokens=True)
    after = tokenizer.backend.get_vocab(with_added_tokens=True)
    assert {name.strip(): number for name, number in after.items() if name.strip()}.items() >= {
        name.strip(): number for name, number in before.items() if name.strip()
    }.items()
    assert sorted(after.values()) == list(range(tokenizer.vocab_size))
    new = [token for token in CONTROL_TOKENS if token not in before]
    assert [after[token] for token in new] == list(
        range(tokenizer.vocab_size - len(new), tokenizer.vocab_size)
    )


def test_text_has_the_ids_that_it_had(pair: tuple[Tokenizer, ChatTokenizer]) -> None:
    backend, tokenizer = pair
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    for text in ("and my house", "yes no 42", "rain  sun"):
        ids = plain.encode(text, add_special_tokens=False).ids
        spaced = plain.pre_tokenizer.pre_tokenize_str("a")[0][0] != "a"
        assert tokenizer.encode(f" {text}" if spaced else text) == ids


@given(st.lists(st.sampled_from([*SPECIAL, *CONTROL_TOKENS, "  ", "<tag>", " "]) | st.text()))
def test_every_text_comes_back_and_none_is_a_special_token(
    pair: tuple[Tokenizer, ChatTokenizer], parts: list[str]
) -> None:
    backend, tokenizer = pair
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    assert not {vocabulary[token] for token in special} & set(ids)
    assert not any(tokenizer.is_control(token) for token in ids)


def test_transformers_renders_the_same_ids(
    pair: tuple[Tokenizer, ChatTokenizer], tmp_path: Path
) -> None:
    _, tokenizer = pair
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    typed = " ".join(SPECIAL) + " <|user|><|end|>  e\u0301 <tag> x"
    messages = [{"role": "user", "content": typed}, {"role": "assistant", "content": " a  b\n"}]
    rendered = theirs.apply_chat_template(messages, return_dict=False)
    assert rendered == tokenizer.encode_chat(messages)
    assert theirs.decode(tokenizer.encode(typed)) == typed


def test_the_fast_encoder_takes_what_cuts_words_as_gpt2_does() -> None:
    folder = gpt2()
    tokenizer = ChatTokenizer.load(_saved(folder))
    encoder = encoder_of(tokenizer)
    corpus = [*chats(50, 3), [{"role": "user", "content": "<|endoftext|> a"}]]
    wanted = [i for ids in tokenizer.encode_chats(corpus) for i in ids]
    found = encoder.encode_chats(corpus)
    assert found is not None
    assert np.array_equal(found, wanted)
    for kind in (llama3, neox):
        with pytest.raises(NotTheSame):
            encoder_of(ChatTokenizer.load(_saved(kind())))


def _saved(backend: Tokenizer) -> Path:
    import tempfile

    folder = Path(tempfile.mkdtemp())
    backend.save(str(folder / "tokenizer.json"))
    adopted = adopt(folder)
    adopted.save(folder)
    return folder


def test_one_of_parleys_own_is_taken_as_it_is(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.train(iter(TEXTS), 300)
    tokenizer.save(tmp_path)
    assert adopt(tmp_path / "tokenizer.json").sha256 == tokenizer.sha256


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qwen().save(str(tmp_path / "a.json"))
    adopt(tmp_path / "a.json")
    assert "normaliser" in capsys.readouterr().err


def no_bytes() -> Tokenizer:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def losing_spaces() -> Tokenizer:
    backend = learnt([])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return backend


def with_a_gap() -> Tokenizer:
    content = json.loads(learnt([]).to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["unused"] = len(vocabulary) + 5
    return Tokenizer.from_str(json.dumps(content))


def that_reads_bytes_as_words() -> Tokenizer:
    backend = learnt([])
    backend.add_tokens(["é"])
    return backend


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (no_bytes, "is not a byte-level BPE"),
        (losing_spaces, "would lose text"),
        (with_a_gap, "has no token of id"),
        (that_reads_bytes_as_words, "would lose text: 'é'"),
        (lambda: Tokenizer(models.WordLevel({"a": 0}, "a")), "is not a byte-level BPE"),
    ],
)
def test_what_cannot_keep_the_promises_is_refused(
    tmp_path: Path, kind: Callable[[], Tokenizer], message: str
) -> None:
    kind().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SettingsError, match=rf"^tokenizer\.path: .*tokenizer\.json {message}"):
        adopt(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"model": {}}'])
def test_a_file_that_is_no_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "own.json"
    file.write_bytes(content)
    write_params(tmp_path, tiny_params({"tokenizer.path": str(file)}))
    write_conversations(tmp_path, {"train": chats(5, 1), "validation": chats(2, 2)})
    code, stderr = run_stage("tokenizer", tmp_path)
    assert code == 2
    (line,) = error_lines(stderr)
    assert "tokenizer.path" in line
    assert "own.json" in line


@pytest.mark.parametrize(
    ("path", "message"), [("nowhere", "is no folder"), ("empty", "no tokenizer.json in 'empty'")]
)
def test_a_path_without_a_tokenizer_is_found_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    write_params(tmp_path, tiny_params({"tokenizer.path": path}))
    assert exit_code("tokenizer", tmp_path) == 2
    error = capsys.readouterr().err
    assert "tokenizer.path: " in error
    assert message in error


def test_the_stages_work_with_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    for name, kind in (("a", gpt2), ("b", llama3)):
        root = tmp_path / name
        (root / "own").mkdir(parents=True)
        kind().save(str(root / "own/tokenizer.json"))
        write_params(root, tiny_params({"tokenizer.path": "own"}))
        write_conversations(root, {"train": chats(40, 1), "validation": chats(5, 2)})
        call_stage("tokenizer", root)
        first = contents(root / "data/tokenizer")
        call_stage("tokenizer", root)
        assert contents(root / "data/tokenizer") == first
        call_stage("shards", root)
        metrics = json.loads((root / "metrics/tokenizer.json").read_text(encoding="utf-8"))
        assert metrics["vocab_size"] == ChatTokenizer.load(root / "data/tokenizer").vocab_size
        assert "learnt_from_characters" not in metrics
