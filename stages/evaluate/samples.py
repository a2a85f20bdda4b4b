"""Samples to read: replies to prompts, continuations of real conversations, free conversations."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from model.generate import generate_ids
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from stages.corpus import TokenStream
from stages.evaluate.params import EvaluateParams

FREE_CONVERSATIONS = 2
DOCUMENT_BLOCK = 4096


@dataclass
class Samples:
    """The page, and how many of the replies on it ended by themselves."""

    lines: list[str] = field(default_factory=list)
    replies: int = 0
    ended: int = 0


def write_samples(
    model: Transformer, tokenizer: ChatTokenizer, validation: TokenStream, params: EvaluateParams
) -> Samples:
    """Greedy and sampled replies as a page of Markdown; the same seed gives the same page."""
    page = Samples()
    add = page.lines.append
    add("# Samples")
    add("")
    add(
        f"Greedy replies take the most probable token; sampled ones have temperature "
        f"{params.temperature}, top-p {params.top_p} and seed {params.seed}. A reply ends with its "
        f"turn, or is cut (marked …) after {params.max_new_tokens} tokens or when the context "
        f"is full."
    )
    if params.prompts:
        add("")
        add("## Prompts")
    for prompt in params.prompts:
        add("")
        add(f"**user:** {_inline(prompt)}")
        ids = tokenizer.encode_chat(
            [{"role": "user", "content": prompt}], add_generation_prompt=True
        )
        _replies(page, model, tokenizer, ids, params)
    openings = list(_openings(validation, tokenizer, model.config.seq_len, params))
    if openings:
        add("")
        add("## Conversations of the validation set, continued")
    for ids, actual in openings:
        add("")
        for role, text, _ in transcript(tokenizer, ids):
            add(f"**{role}:** {_inline(text)}  ")
        _replies(page, model, tokenizer, ids, params)
        add(f"- actual: {_inline(tokenizer.decode(actual))}")
    add("")
    add("## Free conversations")
    add("")
    add("From `<|bos|>` alone: the model chooses both speakers' words and whose turn it is.")
    for number in range(FREE_CONVERSATIONS):
        ids = [tokenizer.bos_id]
        ids += generate_ids(
            model, ids, model.config.seq_len, params.temperature, None, params.top_p,
            torch.Generator().manual_seed(params.seed + number), stop=(tokenizer.bos_id,),
        )  # fmt: skip
        add("")
        for role, text, ended in transcript(tokenizer, ids):
            add(f"**{role}:** {_inline(text)}{'' if ended else ' …'}  ")
    return page


def _replies(
    page: Samples,
    model: Transformer,
    tokenizer: ChatTokenizer,
    ids: list[int],
    params: EvaluateParams,
) -> None:
    for name, temperature in (("greedy", 0.0), ("sampled", params.temperature)):
        # Another draw for each reply: with one seed alike, unlike prompts got the same words.
        generator = torch.Generator().manual_seed(params.seed + page.replies)
        if len(ids) >= model.config.seq_len:
            page.lines.append(f"- {name}: (the prompt fills the model's context)")
            continue
        # The most that a full context leaves: a reply of that length did not end by itself.
        limit = min(params.max_new_tokens, model.config.seq_len - len(ids))
        reply = list(
            generate_ids(
                model, ids, limit, temperature, None, params.top_p, generator, (tokenizer.end_id,)
            )
        )
        ended = len(reply) < limit
        page.replies += 1
        page.ended += ended
        page.lines.append(f"- {name}: {_inline(tokenizer.decode(reply))}{'' if ended else ' …'}")


def _openings(
    stream: TokenStream, tokenizer: ChatTokenizer, seq_len: int, params: EvaluateParams
) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts up to an assistant's role token, and what the assistant really said.

    Of each of the first conversations that allow it: the third reply, or the last before that,
    whose prompt leaves room for ``max_new_tokens`` (or half of the context, if that is less).
    """
    room = seq_len - min(params.max_new_tokens, seq_len // 2)
    found = 0
    for document in _documents(stream, seq_len):
        if found == params.openings:
            return
        marks = [
            i + 1 for i, token in enumerate(document[:room]) if token == stream.roles.assistant
        ]
        ends = [i for i, token in enumerate(document) if token == stream.roles.end]
        marks = [mark for mark in marks if any(end >= mark for end in ends)]
        if marks:
            mark = marks[min(2, len(marks) - 1)]
            found += 1
            yield document[:mark], document[mark : next(end for end in ends if end >= mark)]


def _documents(stream: TokenStream, longest: int) -> Iterator[list[int]]:
    """The first ``longest`` tokens of each document, in order."""
    document: list[int] = []
    for start in range(0, len(stream), DOCUMENT_BLOCK):
        for token in stream.read(start, min(start + DOCUMENT_BLOCK, len(stream))).tolist():
            if token == stream.roles.bos and document:
                yield document
                document = []
            if len(document) < longest:
                document.append(token)
    if document:
        yield document


def transcript(tokenizer: ChatTokenizer, ids: list[int]) -> list[tuple[str, str, bool]]:
    """Turns of a rendered conversation: role, text and whether the turn was ended.

    Tokens outside a turn are shown under the role ``(none)``.
    """
    names = {token: role for role, token in tokenizer.role_ids.items()}
    turns: list[tuple[str, list[int], bool]] = []
    for token in ids:
        if token in names:
            turns.append((names[token], [], False))
        elif token == tokenizer.end_id:
            if turns:
                role, words, _ = turns.pop()
                turns.append((role, words, True))
        elif token not in (tokenizer.bos_id, tokenizer.pad_id):
            if not turns or turns[-1][2]:
                turns.append(("(none)", [], False))
            turns[-1][1].append(token)
    if turns and turns[-1][0] == "assistant" and not turns[-1][1]:
        turns.pop()  # the generation prompt
    return [(role, tokenizer.decode(words), ended) for role, words, ended in turns]


def sample_rows(lines: list[str]) -> list[tuple[str, str, str]]:
    """The page as a table: what was said last, whose reply (greedy, sampled, actual), its text."""
    prompt, rows = "", []
    for line in lines:
        if line.startswith("**"):
            prompt = line.partition(":** ")[2].strip()
        elif line.startswith("- "):
            name, _, text = line[2:].partition(": ")
            rows.append((prompt, name, text))
    return rows


def _inline(text: str) -> str:
    """Text on one line of Markdown, its special characters shown as they are."""
    for character in "\\`*_[]<>#|&~$":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split()) or "(nothing)"
