"""Samples to read: replies to prompts, continuations of real conversations, free conversations."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from model.engine import Engine, Reply
from model.sampling import Sampling
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from stages.corpus import TokenStream
from stages.evaluate.params import EvaluateParams

FREE_CONVERSATIONS = 2
SLOTS = 16  # replies made at a time
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
    seq_len = model.config.seq_len
    prompts = [
        tokenizer.encode_chat([{"role": "user", "content": prompt}], add_generation_prompt=True)
        for prompt in params.prompts
    ]
    openings = list(_openings(validation, tokenizer, seq_len, params))
    replies, free = _generate(model, tokenizer, [*prompts, *(ids for ids, _ in openings)], params)
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
        add(f"**user:** {_inline(prompt)}")
        _show(page, of_one)
    if openings:
        add("")
        add("## Conversations of the validation set, continued")
    for (ids, actual), of_one in zip(openings, replies[len(prompts) :], strict=True):
        add("")
        for role, text, _ in transcript(tokenizer, ids):
            add(f"**{role}:** {_inline(text)}  ")
        _show(page, of_one)
        add(f"- actual: {_inline(tokenizer.decode(actual))}")
    add("")
    add("## Free conversations")
    add("")
    add("From `<|bos|>` alone: the model chooses both speakers' words and whose turn it is.")
    for reply in free:
        add("")
        for role, text, ended in transcript(tokenizer, [tokenizer.bos_id, *reply.token_ids]):
            add(f"**{role}:** {_inline(text)}{'' if ended else ' …'}  ")
    return page


def _generate(
    model: Transformer, tokenizer: ChatTokenizer, prompts: list[list[int]], params: EvaluateParams
) -> tuple[list[tuple[Reply, Reply] | None], list[Reply]]:
    """A greedy and a sampled reply to each of ``prompts`` (None without room); free conversations.

    Up to SLOTS at a time.
    """
    seq_len = model.config.seq_len
    fitting = [ids for ids in prompts if len(ids) < seq_len]
    greedy = Sampling(max_new_tokens=params.max_new_tokens, temperature=0.0)
    sampled = Sampling(
        max_new_tokens=params.max_new_tokens, temperature=params.temperature, top_p=params.top_p
    )
    jobs: list[tuple[list[int], Sampling]] = []
    for ids in fitting:
        # Another draw for each reply: with one seed alike, unlike prompts got the same words.
        seed = params.seed + len(jobs) + 1
        jobs += [(ids, greedy), (ids, replace(sampled, seed=seed))]
    free = [
        replace(sampled, max_new_tokens=seq_len, seed=params.seed + number)
        for number in range(FREE_CONVERSATIONS)
    ]
    # torch's operations in float32 whatever the machine: the page is an output that DVC hashes, and
    # its words shouldn't depend on whether there is a compiler for the engine's own kernel.
    engine = Engine(
        model, tokenizer, slots=min(SLOTS, max(len(jobs), len(free))), weights="fp32", native=False
    )
    made = iter(engine.replies([ids for ids, _ in jobs], [sampling for _, sampling in jobs]))
    replies = [(next(made), next(made)) if len(ids) < seq_len else None for ids in prompts]
    starts = [[tokenizer.bos_id]] * len(free)
    return replies, engine.replies(starts, free, end=(tokenizer.bos_id,))


def _show(page: Samples, replies: tuple[Reply, Reply] | None) -> None:
    for name, reply in zip(("greedy", "sampled"), replies or (None, None), strict=True):
        if reply is None:
            page.lines.append(f"- {name}: (the prompt fills the model's context)")
            continue
        ended = reply.finish == "stop"
        page.replies += 1
        page.ended += ended
        page.lines.append(f"- {name}: {_inline(reply.text)}{'' if ended else ' …'}")


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


def _inline(text: str) -> str:
    """Text on one line of Markdown, its special characters shown as they are."""
    for character in "\\`*_[]<>#|&~$":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split()) or "(nothing)"
