"""The page of samples: the same for the same seed, readable as Markdown, within the context."""

import re
from pathlib import Path
from typing import Any

import pytest

from model.engine import Engine, Reply
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from stages.conversations import Message
from stages.corpus import TokenStream
from stages.evaluate import samples
from stages.evaluate.continuations import continue_openings
from stages.evaluate.params import EvaluateParams
from stages.evaluate.samples import transcript, write_samples
from tests.builders import chats, make_stream, tiny_model, tiny_params

MAX_NEW = 8


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    words = (message["content"] for chat in chats(30, 1) for message in chat)
    return ChatTokenizer.train(words, 300)


@pytest.fixture(scope="module")
def stream(tokenizer: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    documents = [tokenizer.encode_chat(chat) for chat in chats(12, 2)]
    return make_stream(tmp_path_factory.mktemp("stream"), documents, 300)


def model_for(tokenizer: ChatTokenizer, **changes: Any) -> Transformer:
    values = {
        "vocab_size": tokenizer.vocab_size,
        "seq_len": 64,
        "bos_id": tokenizer.bos_id,
        "end_id": tokenizer.end_id,
        "pad_id": tokenizer.pad_id,
    }
    return tiny_model(**{**values, **changes}).eval()


def evaluate_params(**changes: Any) -> EvaluateParams:
    return EvaluateParams(
        **tiny_params({f"evaluate.{key}": value for key, value in changes.items()})["evaluate"]
    )


def test_the_same_seed_gives_the_same_page_and_another_seed_another(
    tokenizer: ChatTokenizer, stream: TokenStream
) -> None:
    model = model_for(tokenizer)
    pages = [
        write_samples(model, tokenizer, stream, evaluate_params(seed=seed)) for seed in (1, 1, 2)
    ]
    assert pages[0] == pages[1]
    changed = [(a, b) for a, b in zip(pages[0].lines, pages[2].lines, strict=False) if a != b]
    assert any(line.startswith("- sampled:") for line, _ in changed)
    assert not any(line.startswith(("- greedy:", "- actual:")) for line, _ in changed)


def test_temperature_zero_samples_what_is_greedy(
    tokenizer: ChatTokenizer, stream: TokenStream
) -> None:
    page = write_samples(model_for(tokenizer), tokenizer, stream, evaluate_params(temperature=0.0))
    replies = {
        name: [line.removeprefix(name) for line in page.lines if line.startswith(name)]
        for name in ("- greedy:", "- sampled:")
    }
    assert replies["- greedy:"] == replies["- sampled:"]
    assert len(replies["- greedy:"]) == 4


def test_every_prompt_and_opening_is_answered_and_counted(
    tokenizer: ChatTokenizer, stream: TokenStream
) -> None:
    params = evaluate_params(prompts=["one", "two", "three"], openings=2)
    page = write_samples(model_for(tokenizer), tokenizer, stream, params)
    replies = [line for line in page.lines if line.startswith(("- greedy:", "- sampled:"))]
    assert page.replies == len(replies) == 2 * (3 + 2)
    assert page.ended == sum(not line.endswith(" …") for line in replies)
    assert [line for line in page.lines if line.startswith("**user:** ")][:3] == [
        "**user:** one",
        "**user:** two",
        "**user:** three",
    ]


@pytest.mark.parametrize("part", ["prompts", "openings"])
def test_a_part_that_is_not_asked_for_has_no_heading(
    tokenizer: ChatTokenizer, stream: TokenStream, part: str
) -> None:
    params = evaluate_params(**{part: [] if part == "prompts" else 0})
    page = write_samples(model_for(tokenizer), tokenizer, stream, params)
    headings = [line for line in page.lines if line.startswith("## ")]
    expected = {"prompts": "## Prompts", "openings": "## Conversations of the validation set"}
    assert not any(line.startswith(expected[part]) for line in headings)
    assert len(headings) == 2


def test_a_prompt_that_fills_the_context_is_said_to(
    tokenizer: ChatTokenizer, stream: TokenStream
) -> None:
    params = evaluate_params(prompts=["word " * 50], openings=0)
    page = write_samples(model_for(tokenizer, seq_len=16), tokenizer, stream, params)
    assert page.replies == 0
    assert sum("fills the model's context" in line for line in page.lines) == 2


@pytest.mark.parametrize("max_new_tokens", [4, 100])
def test_a_reply_that_the_context_cuts_off_has_not_ended(
    tokenizer: ChatTokenizer,
    stream: TokenStream,
    monkeypatch: pytest.MonkeyPatch,
    max_new_tokens: int,
) -> None:
    class Endless(Engine):
        def replies(self, *arguments: Any, end: Any = None) -> list[Reply]:
            return super().replies(*arguments, end=())

    monkeypatch.setattr(samples, "Engine", Endless)
    params = evaluate_params(prompts=["a", "b"], openings=2, max_new_tokens=max_new_tokens)
    page = write_samples(model_for(tokenizer, seq_len=32), tokenizer, stream, params)
    replies = [line for line in page.lines if line.startswith(("- greedy:", "- sampled:"))]
    assert page.replies == len(replies) == 8
    assert page.ended == 0
    assert all(line.endswith(" …") for line in replies)


@pytest.mark.parametrize("max_new_tokens", [1, 5, 8, 100])
@pytest.mark.parametrize("seq_len", [2, 3, 7, 8, 16, 40, 64, 4096])
def test_openings_leave_room_for_a_reply_in_any_context(
    tokenizer: ChatTokenizer, stream: TokenStream, seq_len: int, max_new_tokens: int
) -> None:
    params = evaluate_params(openings=6, max_new_tokens=max_new_tokens)
    found = list(samples.openings(stream, tokenizer, seq_len, params))
    rendered = [tokenizer.encode_chat(chat) for chat in chats(12, 2)]
    room = min(max_new_tokens, seq_len // 2)
    position = 0
    for ids, actual in found:
        assert ids[-1] == tokenizer.role_ids["assistant"]
        assert len(ids) + room <= seq_len
        whole = [*ids, *actual, tokenizer.end_id]
        # Of different conversations, in order.
        position = next(
            n for n in range(position, len(rendered)) if rendered[n][: len(whole)] == whole
        )
        position += 1
        assert ids.count(tokenizer.role_ids["assistant"]) <= 3
        assert tokenizer.end_id not in actual
    if seq_len >= 64:
        assert len(found) == 6


@pytest.mark.parametrize("seq_len", [2, 5, 9, 16, 24])
def test_the_whole_page_fits_the_smallest_contexts(
    tokenizer: ChatTokenizer, stream: TokenStream, seq_len: int
) -> None:
    model = model_for(tokenizer, seq_len=seq_len)
    params = evaluate_params(prompts=["a", "word " * 9], openings=3, max_new_tokens=MAX_NEW)
    page = write_samples(model, tokenizer, stream, params)
    openings = list(samples.openings(stream, tokenizer, seq_len, params))
    assert sum(line.startswith("- actual:") for line in page.lines) == len(openings)
    assert page.ended <= page.replies


def test_an_opening_takes_the_third_reply_or_the_last_before_it(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    def chat(replies: int) -> list[Message]:
        said: list[Message] = []
        for number in range(replies):
            said.append({"role": "user", "content": f"q{number}"})
            said.append({"role": "assistant", "content": f"a{number}"})
        return said

    unanswered: list[Message] = [{"role": "user", "content": "no answer"}]
    documents = [tokenizer.encode_chat(c) for c in (chat(1), unanswered, chat(2), chat(5))]
    found = samples.openings(
        make_stream(tmp_path, documents), tokenizer, 256, evaluate_params(openings=9)
    )
    assert [tokenizer.decode(actual) for _, actual in found] == ["a0", "a1", "a2"]


def test_an_empty_reply_is_not_taken_for_the_next_turn(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    said: list[Message] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "more"},
    ]
    stream = make_stream(tmp_path, [tokenizer.encode_chat(said)])
    ((_, actual),) = samples.openings(stream, tokenizer, 256, evaluate_params())
    assert actual == []


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_documents_come_whole_or_cut_whatever_the_block(
    tokenizer: ChatTokenizer, stream: TokenStream, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(samples, "DOCUMENT_BLOCK", block)
    rendered = [tokenizer.encode_chat(chat) for chat in chats(12, 2)]
    assert list(samples._documents(stream, 10**6)) == rendered
    assert list(samples._documents(stream, 7)) == [ids[:7] for ids in rendered]


def test_a_transcript_gives_the_conversation_back(tokenizer: ChatTokenizer) -> None:
    for chat in chats(20, 3):
        expected = [(message["role"], message["content"], True) for message in chat]
        assert transcript(tokenizer, tokenizer.encode_chat(chat)) == expected
        # A generation prompt is no turn.
        prompt = tokenizer.encode_chat(chat, add_generation_prompt=True)
        assert transcript(tokenizer, prompt) == expected


def test_a_transcript_shows_what_a_model_does_wrong(tokenizer: ChatTokenizer) -> None:
    bos, end, pad = tokenizer.bos_id, tokenizer.end_id, tokenizer.pad_id
    user, assistant = tokenizer.role_ids["user"], tokenizer.role_ids["assistant"]
    a, b, c = (tokenizer.encode(letter) for letter in "abc")
    ids = [bos, *a, user, *b, end, end, *c, pad, assistant, *a, user, assistant, *b]
    assert transcript(tokenizer, ids) == [
        ("(none)", "a", False),
        ("user", "b", True),
        ("(none)", "c", False),
        ("assistant", "a", False),
        ("user", "", False),
        ("assistant", "b", False),
    ]
    assert transcript(tokenizer, []) == []
    assert transcript(tokenizer, [bos, end]) == []


def test_replies_are_tabled_for_the_picture_with_lines_broken(
    tokenizer: ChatTokenizer, stream: TokenStream
) -> None:
    params = evaluate_params(prompts=["one", "one", "two " * 60], openings=2)
    page = write_samples(model_for(tokenizer, seq_len=512), tokenizer, stream, params)
    rows = samples.side_by_side(page.table)
    assert len(rows) == page.replies == 10
    # Prompts that are alike stay apart, as the picture has one line for each.
    assert len({row["prompt"] for row in rows}) == 10
    assert rows[0]["prompt"] == "1. one\n(greedy)"
    assert rows[3]["prompt"] == "2. one\n(sampled)"
    for row in rows:
        lines = row["prompt"].split("\n")
        assert len(lines) <= samples.PROMPT_LINES + 1
        assert all(len(line) <= samples.PROMPT_WIDTH for line in lines)
        assert row["reply"]
        assert len(row["reply"].split("\n")) <= samples.REPLY_LINES


def test_no_text_ends_the_script_of_a_page_that_dvc_writes_it_into() -> None:
    text = "a </script> <!-- <script>alert(1)</SCRIPT> 1 < 2 \x1b\u202e"
    (row,) = samples.side_by_side([{"prompt": text, "kind": "greedy", "reply": text}])
    for field in row.values():
        assert not re.search("<[/!]", field)
    words = " ".join(row["reply"].replace("\u2060", "").split())
    assert words == "a </script> <!-- <script>alert(1)</SCRIPT> 1 < 2 [U+001B][U+202E]"


@pytest.mark.parametrize("seq_len", [4, 24, 64])
def test_replies_are_measured_beside_what_was_said(
    tokenizer: ChatTokenizer, stream: TokenStream, seq_len: int
) -> None:
    model = model_for(tokenizer, seq_len=seq_len)
    params = evaluate_params(openings=0)
    rows = continue_openings(model, tokenizer, stream, params)
    wanted = params.model_copy(update={"openings": 10**6})
    places = list(samples.openings(stream, tokenizer, seq_len, wanted))
    if not places:
        assert rows == []
        return
    assert [row["who"] for row in rows] == ["greedy", "sampled", "data"]
    assert {row["replies"] for row in rows} == {len(places)}
    words = [len(tokenizer.decode(actual).split()) for _, actual in places]
    assert rows[2]["mean_words"] == pytest.approx(sum(words) / len(words), rel=1e-3)
    assert rows[2]["ended"] == 1.0
    assert continue_openings(model, tokenizer, stream, params) == rows
