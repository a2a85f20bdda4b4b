"""The house's rules for a conversation, its digest, and the side of the split that it gives."""

import hashlib
import itertools
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.conversations import ROLES, Message, Role
from stages.download.formats import Malformed, Turn, Unusable
from stages.download.normalise import content_digest, held_out, normalise

# Every kind of character that str.split takes for white space, controls among them.
SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"

_words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_spaces = st.text(st.sampled_from(SPACES), min_size=1, max_size=4)
_roles = st.sampled_from(ROLES)
_turns: st.SearchStrategy[list[Turn]] = st.lists(st.tuples(_roles, _words | _spaces), max_size=8)


def messages(*turns: Turn) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("turns", "kept", "mended"),
    [
        ([("user", f"{SPACES}a {SPACES}b{SPACES}")], [("user", f"a {SPACES}b")], {}),
        ([("text", " \n a\t\n")], [("text", " \n a\t\n")], {}),
        (
            [("user", "a"), ("assistant", f" {SPACES}"), ("user", ""), ("assistant", "b")],
            [("user", "a"), ("assistant", "b")],
            {"empty": 2},
        ),
        (
            [("assistant", "Hi!"), ("assistant", "You?"), ("user", "a"), ("assistant", "b")],
            [("user", "a"), ("assistant", "b")],
            {"leading_assistant": 2},
        ),
        (
            [("system", "s"), ("assistant", "Hi!"), ("user", "a")],
            [("system", "s"), ("user", "a")],
            {"leading_assistant": 1},
        ),
        (
            [("user", " a "), ("user", " b "), ("assistant", "c"), ("assistant", "d\n")],
            [("user", "a\nb"), ("assistant", "c\nd")],
            {"joined": 2},
        ),
        (
            [("user", "a"), ("assistant", " "), ("user", "b")],
            [("user", "a\nb")],
            {"empty": 1, "joined": 1},
        ),
        ([("user", "a"), ("system", "s")], [("user", "a"), ("system", "s")], {}),
        ([("user", "\x00 <|user|> \u200b🙂")], [("user", "\x00 <|user|> \u200b🙂")], {}),
    ],
)
def test_the_rules_of_a_conversation(
    turns: list[Turn], kept: list[Turn], mended: dict[str, int]
) -> None:
    assert normalise(turns) == (messages(*kept), Counter(mended))


@pytest.mark.parametrize(
    ("turns", "rule"),
    [
        ([], "empty"),
        ([("user", " ")], "empty"),
        ([("text", "\n\n")], "empty"),
        ([("system", "s")], "no_user"),
        ([("assistant", "a")], "no_user"),
        ([("system", "s"), ("assistant", "a"), ("user", "\u2003")], "no_user"),
    ],
)
def test_a_conversation_without_a_word_of_the_user_is_dropped_by_rule(
    turns: list[Turn], rule: str
) -> None:
    with pytest.raises(Unusable, match=rf"^{rule}$"):
        normalise(turns)


@pytest.mark.parametrize("role", ["user", "assistant", "text"])
def test_text_that_is_not_unicode_is_malformed(role: Role) -> None:
    with pytest.raises(Malformed, match=r"^not_unicode$"):
        normalise([("user", "a"), (role, "half of a pair: \ud83d")])


@settings(max_examples=60)
@given(_turns)
def test_a_conversation_is_normal_after_one_pass(turns: list[Turn]) -> None:
    try:
        result, mended = normalise(turns)
    except Unusable:
        assert all(not content.strip() for role, content in turns if role in ("user", "text"))
        return
    roles = [message["role"] for message in result]
    assert all(a != b for a, b in itertools.pairwise(roles))
    assert len(turns) - len(result) == sum(mended.values())
    again, changes = normalise([(message["role"], message["content"]) for message in result])
    assert (again, changes) == (result, Counter())


@settings(max_examples=60)
@given(st.lists(st.tuples(st.lists(_words, max_size=4), _spaces, _spaces), max_size=4))
def test_a_digest_takes_all_white_space_for_the_same(
    contents: list[tuple[list[str], str, str]],
) -> None:
    plain = messages(*(("user", " ".join(words)) for words, _, _ in contents))
    spaced = messages(*(("user", a + b.join(words) + b) for words, a, b in contents))
    assert content_digest(plain) == content_digest(spaced)


def _folded(conversation: list[Message]) -> list[tuple[str, list[str]]]:
    return [(message["role"], message["content"].split()) for message in conversation]


_conversations = st.lists(
    st.tuples(_roles, st.text(st.sampled_from("ab \n\x1e\x1f"), max_size=4)), max_size=3
).map(lambda turns: messages(*turns))


@settings(max_examples=60)
@given(_conversations, _conversations)
@example(messages(("user", "a"), ("assistant", "b")), messages(("user", "a\x1eassistant\x1fb")))
@example(messages(("user", "a b")), messages(("user", "ab")))
@example(messages(("user", "a")), messages(("assistant", "a")))
@example(messages(("user", "a"), ("user", "b")), messages(("user", "a\nb")))
def test_a_digest_tells_any_other_difference(a: list[Message], b: list[Message]) -> None:
    assert (content_digest(a) == content_digest(b)) == (_folded(a) == _folded(b))


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.2, 0.5, 0.999])
def test_about_the_fraction_is_held_out(fraction: float) -> None:
    total = 20_000
    digests = [content_digest(messages(("user", str(number)))) for number in range(total)]
    held = sum(held_out(digest, fraction) for digest in digests)
    assert abs(held - fraction * total) < 5 * (total * fraction * (1 - fraction)) ** 0.5


@settings(max_examples=60)
@given(st.binary(min_size=32, max_size=32), st.floats(0.001, 0.5), st.floats(0.001, 0.499))
def test_a_larger_fraction_holds_out_the_same_and_more(
    digest: bytes, fraction: float, more: float
) -> None:
    assert held_out(digest, fraction + more) or not held_out(digest, fraction)


def test_the_digest_of_a_conversation_never_changes() -> None:
    """It decides the split of every corpus: another digest makes old metrics incomparable."""
    conversation = messages(("system", "Be brief."), ("user", "Hello,\n you"), ("assistant", "Hé!"))
    written = "system\x1fBe brief.\x1euser\x1fHello, you\x1eassistant\x1fHé!\x1e"
    assert content_digest(conversation) == hashlib.sha256(written.encode()).digest()
