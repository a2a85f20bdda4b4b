"""What people typed is seen on a page of Markdown as they typed it, and does nothing there."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from stages.markdown import code, inline

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def visible(markdown: str) -> str:
    """The text that a reader of the rendered page sees."""
    pieces: list[str] = []
    for token in MARKDOWN.parse(markdown):
        for child in token.children or []:
            assert child.type in ("text", "text_special", "strong_open", "strong_close"), child
            pieces.append(child.content)
    return "".join(pieces)


characters = st.sampled_from("\\`*_[]()<>#|!&~$+-.:;=\"'{}^1ab \n\té🙂") | st.characters(
    exclude_categories=("Cs", "Cc"),
    exclude_characters="\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
)


@given(text=st.text(characters, max_size=40))
@example(text="*a* _b_ `c` [d](e) <f> # g | h")
@example(text="&lt;b&gt; &amp; &#42; &copy")
@example(text="~~struck~~ out")
@example(text="<!-- hidden --> <script>alert(1)</script>")
@example(text="one\n\n# two\n- three")
@example(text="\\*a\\*")
@example(text="![x](http://x.y/z.png)")
def test_text_is_seen_as_it_was_typed(text: str) -> None:
    shown = inline(text)
    assert "\n" not in shown
    # Leading and trailing marks stand apart; white space folds.
    expected = " ".join(text.split())
    assert visible(f"**user:** {shown}") == f"user: {expected}".rstrip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\0b\x1b[31mred", r"a\[U+0000\]b\[U+001B\]\[31mred"),
        ("\x18 \x9b \u202eevil\u2066", r"\[U+0018\] \[U+009B\] \[U+202E\]evil\[U+2066\]"),
        ("👨\u200d👩\u200d👧 می\u200cخواهم", "👨\u200d👩\u200d👧 می\u200cخواهم"),
    ],
)
def test_what_steers_a_terminal_is_named(text: str, expected: str) -> None:
    assert inline(text) == expected


@pytest.mark.parametrize("text", ["a $x^2$ b", "$$y$$"])
def test_what_looks_like_a_formula_is_not_one(text: str) -> None:
    assert "$" not in inline(text).replace("\\$", "")


@given(text=st.text(characters, max_size=40).filter(str.strip))
@example(text="`")
@example(text="`` a")
@example(text="<b>|*x*|")
def test_code_is_seen_as_it_was_typed(text: str) -> None:
    (token,) = [token for token in MARKDOWN.parse(f"a {code(text)} b") if token.children]
    assert [child.type for child in token.children or []] == ["text", "code_inline", "text"]
    assert (token.children or [])[1].content == " ".join(text.split())
