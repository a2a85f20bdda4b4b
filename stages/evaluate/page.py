"""The hardest and easiest conversations as a page of HTML, each token coloured by its cost.

The page needs nothing but itself: no script, no font, no other file. Text is escaped; colours are
laid over the background, so that light and dark read alike; a token's figures show on hovering.
"""

import html
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from model.tokenizer import ChatTokenizer
from stages.evaluate.extremes import FEWEST_TOKENS, Conversation

STEPS = (0.5, 1, 2, 4, 6, 8, 11, 14)  # bits at which the next colour begins

STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --faint: #6b6b70; --page: #fff; --card: #f6f6f7;
  --line: #d9d9de; --heat: 224, 82, 6; --tip: #1c1c1e; --tip-text: #fff; }
@media (prefers-color-scheme: dark) { :root { --text: #ececf0; --faint: #a0a0a8; --page: #17171a;
  --card: #202024; --line: #3a3a40; --heat: 255, 106, 26; --tip: #f2f2f4; --tip-text: #17171a; } }
* { box-sizing: border-box; }
html { overflow-x: clip; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 6rem; background: var(--page);
  color: var(--text); font: 16px/1.6 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p { margin: .5rem 0; max-width: 44rem; }
.legend { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .25rem;
  align-items: center; padding: .6rem 0; background: var(--page); font-size: .85rem;
  border-bottom: 1px solid var(--line); }
.legend b { padding: .1rem .55rem; font-weight: 400; border-radius: 3px; }
article { background: var(--card); border-radius: 8px; padding: .9rem 1.1rem; margin: 0 0 1rem; }
h3 { font-size: .85rem; font-weight: 600; margin: 0 0 .5rem; color: var(--faint); }
h3 strong { color: var(--text); }
.m { display: grid; grid-template-columns: 6rem 1fr; gap: .75rem; margin: .2rem 0;
  align-items: baseline; }
.m > i { font-style: normal; font-size: .85rem; text-align: right; color: var(--faint); }
.m > div { white-space: pre-wrap; overflow-wrap: anywhere; }
b { font-weight: 400; border-radius: 2px; position: relative; }
.e { font-size: .75em; padding: 0 .3em; }
.rest { color: var(--faint); font-size: .85rem; margin: .5rem 0 0; }
[data-t]:hover { outline: 1px solid var(--text); }
[data-t]:hover::after { content: attr(data-t); position: absolute; left: 0; top: 1.7em; z-index: 2;
  width: max-content; max-width: 18rem; white-space: pre; padding: .2rem .5rem; border-radius: 4px;
  font: 13px/1.4 system-ui, sans-serif; background: var(--tip); color: var(--tip-text);
  pointer-events: none; }
@media (max-width: 40rem) { .m { grid-template-columns: 1fr; gap: 0; }
  .m > i { text-align: left; }
  [data-t]:hover::after { position: fixed; top: auto; left: 1rem; bottom: 1rem; } }
""" + "\n".join(
    f".c{number} {{ background: rgba(var(--heat), {0.82 * number / len(STEPS):.2f}); }}"
    for number in range(1, len(STEPS) + 1)
)


@dataclass
class Piece:
    """One token, or several that make whole characters only together."""

    text: str
    nats: list[float]
    ranks: list[int]

    @property
    def bits(self) -> float:
        return sum(self.nats) / math.log(2)


def shade(bits: float) -> int:
    """The number of a cost's colour, 0 for none."""
    return sum(bits >= step for step in STEPS)


def pieces(one: Conversation, texts: list[bytes]) -> Iterator[tuple[int, Piece]]:
    """The tokens in order, each with its id (that of the last, where several are joined)."""
    waiting = b""
    nats: list[float] = []
    ranks: list[int] = []
    for token, cost, rank in zip(one.ids, one.costs, one.ranks, strict=True):
        whole = not texts[token]  # a control token ends whatever waits
        if whole and waiting:
            yield -1, Piece(waiting.decode(errors="replace"), nats, ranks)
            waiting, nats, ranks = b"", [], []
        waiting, nats, ranks = waiting + texts[token], [*nats, cost], [*ranks, rank]
        try:
            text = waiting.decode()
        except UnicodeDecodeError as error:
            # Four bytes are the longest character: what is no beginning of one never becomes one.
            if error.reason == "unexpected end of data" and len(waiting) - error.start < 4:
                continue
            text = waiting.decode(errors="replace")
        yield token, Piece(text, nats, ranks)
        waiting, nats, ranks = b"", [], []
    if waiting:
        yield -1, Piece(waiting.decode(errors="replace"), nats, ranks)


def _shown(text: str) -> str:
    """Escaped; a line break is also marked, and what can't be seen is named by its number."""
    return html.escape(_named(text.replace("\r", "␍"))).replace("\n", "↵\n")


def _named(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else f"[U+{ord(c):04X}]" for c in text)


def _mark(piece: Piece, text: str, name: str, kind: str = "") -> str:
    ranks = ", ".join(f"{rank:,}" for rank in piece.ranks)
    tip = html.escape(f"{name}  ·  {piece.bits:.2f} bits  ·  rank {ranks}", quote=True)
    classes = " ".join(filter(None, [f"c{level}" if (level := shade(piece.bits)) else "", kind]))
    attribute = f' class="{classes}"' if classes else ""
    return f'<b{attribute} data-t="{tip}">{text}</b>'


def _article(one: Conversation, tokenizer: ChatTokenizer, texts: list[bytes]) -> Iterator[str]:
    roles = {number: name for name, number in tokenizer.role_ids.items()}
    yield (
        f"<article><h3>line {one.number:,} · <strong>{one.bits_per_byte:.2f} bits per byte</strong>"
        f" · {one.nats / one.tokens:.2f} nats a token · {one.tokens:,} tokens</h3>"
    )
    opened = False
    for token, piece in pieces(one, texts):
        if token in roles:
            if opened:
                yield "</div></div>"
            label = _mark(piece, roles[token], f"<|{roles[token]}|>")
            yield f'<div class="m"><i>{label}</i><div>'
            opened = True
            continue
        if not opened:
            yield '<div class="m"><i></i><div>'
            opened = True
        if token == tokenizer.end_id:
            yield _mark(piece, "end", "<|end|>", "e")
        elif piece.text:
            yield _mark(piece, _shown(piece.text), _quoted(piece.text))
    if opened:
        yield "</div></div>"
    if one.tokens > len(one.ids):
        yield f'<p class="rest">… and {one.tokens - len(one.ids):,} more tokens</p>'
    yield "</article>"


def _quoted(text: str) -> str:
    escaped = text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return f"“{_named(escaped)}”"


def write_page(
    hardest: Iterable[Conversation],
    easiest: Iterable[Conversation],
    tokenizer: ChatTokenizer,
    texts: list[bytes],
) -> str:
    """The whole page."""
    lows = (0, *STEPS)
    legend = "".join(
        f"<b{f' class=c{number}' if number else ''}>{low:g}"
        + (f"–{lows[number + 1]:g}</b>" if number + 1 < len(lows) else " and more</b>")
        for number, low in enumerate(lows)
    )
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<title>Hardest and easiest conversations</title>",
        f"<style>{STYLE}</style></head><body>",
        "<h1>The validation set, token by token</h1>",
        "<p>The colour of a token is what it cost the model: the bits by which it was surprised, "
        "-log<sub>2</sub> of the probability that it gave to the token before it saw it. "
        "Point at a token for its figures; rank 1 is the model's first guess. Coloured speakers "
        "and ends say how well it knew whose turn came, and that the message was over.</p>",
        f'<div class="legend">bits a token&nbsp; {legend}</div>',
    ]
    for title, conversations in (("Hardest", hardest), ("Easiest", easiest)):
        lines.append(f"<h2>{title}</h2>")
        articles = ["".join(_article(one, tokenizer, texts)) for one in conversations]
        lines += articles or [
            f"<p>None: conversations of fewer than {FEWEST_TOKENS} tokens are left out.</p>"
        ]
    lines.append("</body></html>")
    return "\n".join(lines) + "\n"
