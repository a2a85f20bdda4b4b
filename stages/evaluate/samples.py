"""Samples to read: replies to prompts, continuations of real conversations, free conversations."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from model.engine import Engine, Reply
from model.sampling import Sampling
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from stages.corpus import TokenStream
from stages.evaluate.params import EvaluateParams
from stages.markdown import inline, named

FREE_CONVERSATIONS = 2
SLOTS = 16  # replies made at a time
DOCUMENT_BLOCK = 4096
# Characters and lines of the text in DVC's picture of replies.
PROMPT_WIDTH, PROMPT_LINES = 28, 3
REPLY_WIDTH, REPLY_LINES = 46, 5
CLOSES_SCRIPT = re.compile("<(?=[/!])")

Both = tuple[Reply, Reply]  # greedy and sampled


@dataclass
class Samples:
    """The page, and how many of the replies on it ended by themselves."""

    lines: list[str] = field(default_factory=list)
    replies: int = 0
    ended: int = 0
    table: list[dict[str, str]] = field(default_factory=list)  # prompt, kind and reply


def write_samples(
    model: Transformer, tokenizer: ChatTokenizer, validation: TokenStream, params: EvaluateParams
) -> Samples:
    """Greedy and sampled replies as a page of Markdown; the same seed gives the same page."""
    seq_len = model.config.seq_len
    prompts = [
        tokenizer.encode_chat([{"role": "user", "content": prompt}], add_generation_prompt=True)
        for prompt in params.prompts
    ]
    places = list(openings(validation, tokenizer, seq_len, params))
    engine = make_engine(model, tokenizer)
    replies = both_replies(engine, [*prompts, *(ids for ids, _ in places)], params)
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
    for prompt, of_one in zip(params.prompts, replies, strict=False):
        add("")
        add(f"**user:** {_seen(prompt)}")
        _show(page, prompt, of_one)
    if places:
        add("")
        add("## Conversations of the validation set, continued")
    for (ids, actual), of_one in zip(places, replies[len(prompts) :], strict=True):
        add("")
        turns = transcript(tokenizer, ids)
        for role, text, _ in turns:
            add(f"**{role}:** {_seen(text)}  ")
        _show(page, turns[-1][1] if turns else "", of_one)
        add(f"- actual: {_seen(tokenizer.decode(actual))}")
    add("")
    add("## Free conversations")
    add("")
    add("From `<|bos|>` alone: the model chooses both speakers' words and whose turn it is.")
    for reply in _free_conversations(engine, params):
        add("")
        for role, text, ended in transcript(tokenizer, [tokenizer.bos_id, *reply.token_ids]):
            add(f"**{role}:** {_seen(text)}{'' if ended else ' …'}  ")
    return page


def make_engine(model: Transformer, tokenizer: ChatTokenizer) -> Engine:
    """By torch's operations in float32 whatever the machine: DVC hashes what comes of it, and the
    words shouldn't depend on whether there is a compiler for the engine's own kernel."""
    return Engine(model, tokenizer, slots=SLOTS, weights="fp32", native=False)


def both_replies(
    engine: Engine, prompts: Sequence[list[int]], params: EvaluateParams
) -> list[Both | None]:
    """A greedy and a sampled reply to each of ``prompts``; None for one that fills the context."""
    seq_len = engine.model.config.seq_len
    greedy, sampled = _settings(params)
    jobs: list[tuple[list[int], Sampling]] = []
    for ids in prompts:
        if len(ids) < seq_len:
            # Another draw for each reply: with one seed alike, unlike prompts got the same words.
            seed = params.seed + len(jobs) + 1
            jobs += [(ids, greedy), (ids, replace(sampled, seed=seed))]
    made = iter(engine.replies([ids for ids, _ in jobs], [sampling for _, sampling in jobs]))
    return [(next(made), next(made)) if len(ids) < seq_len else None for ids in prompts]


def _settings(params: EvaluateParams) -> tuple[Sampling, Sampling]:
    greedy = Sampling(max_new_tokens=params.max_new_tokens, temperature=0.0)
    return greedy, replace(greedy, temperature=params.temperature, top_p=params.top_p)


def _free_conversations(engine: Engine, params: EvaluateParams) -> list[Reply]:
    bos = engine.tokenizer.bos_id
    sampling = replace(_settings(params)[1], max_new_tokens=engine.model.config.seq_len)
    free = [replace(sampling, seed=params.seed + number) for number in range(FREE_CONVERSATIONS)]
    return engine.replies([[bos]] * len(free), free, end=(bos,))


def _show(page: Samples, prompt: str, replies: Both | None) -> None:
    for name, reply in zip(("greedy", "sampled"), replies or (None, None), strict=True):
        if reply is None:
            page.lines.append(f"- {name}: (the prompt fills the model's context)")
            continue
        ended = reply.finish == "stop"
        page.replies += 1
        page.ended += ended
        rest = "" if ended else " …"
        page.lines.append(f"- {name}: {_seen(reply.text)}{rest}")
        page.table.append({"prompt": prompt, "kind": name, "reply": reply.text + rest})


def openings(
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


def _seen(text: str) -> str:
    return inline(text) or "(nothing)"


def side_by_side(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """The replies for DVC's plots, which draw them beside those of other revisions.

    Text in a picture breaks no lines by itself: here they are broken. DVC writes it into a script
    of its page as it is, where ``</`` could end the script and ``<!`` hide its end: a character
    without width stands between.
    """
    number, rows = 0, []
    for row in table:
        number += row["kind"] == "greedy"  # the first of each prompt's
        prompt = _wrapped(f"{number}. {row['prompt']}", PROMPT_WIDTH, PROMPT_LINES)
        rows.append(
            {
                "prompt": f"{prompt}\n({row['kind']})",
                "reply": _wrapped(row["reply"], REPLY_WIDTH, REPLY_LINES) or "(nothing)",
            }
        )
    return rows


def _wrapped(text: str, width: int, lines: int) -> str:
    text = named(" ".join(text.split()))
    text = "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))
    return CLOSES_SCRIPT.sub("<\u2060", text)
