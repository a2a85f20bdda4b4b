"""The set of digests is a set, exact in 128 bits, and small."""

import hashlib
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from stages.download.digests import KEPT, Digests

# Few different bytes, so that rests and buckets are shared, and ends look like beginnings.
_digests = st.lists(
    st.lists(st.sampled_from([b"\0", b"\1"]), min_size=KEPT, max_size=KEPT).map(b"".join),
    max_size=60,
)


@settings(max_examples=60)
@given(_digests, _digests)
def test_it_holds_what_was_added_and_nothing_else(added: list[bytes], asked: list[bytes]) -> None:
    digests, plain = Digests(), set[bytes]()
    for digest in added:
        assert (digest in digests) == (digest in plain)
        if digest not in plain:
            digests.add(digest)
            plain.add(digest)
    for digest in added + asked:
        assert (digest in digests) == (digest in plain)


def test_what_is_past_128_bits_does_not_count() -> None:
    digests = Digests()
    digests.add(bytes(32))
    assert bytes(16) + bytes([1]) * 16 in digests
    assert bytes(15) + bytes([1]) * 17 not in digests


def test_a_digest_takes_less_than_forty_bytes() -> None:
    number = 200_000
    values = [hashlib.sha256(n.to_bytes(4)).digest() for n in range(number)]
    tracemalloc.start()
    digests = Digests()
    before = tracemalloc.get_traced_memory()[0]
    for value in values:
        digests.add(value)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    fixed = 256**2 * 70  # the buckets
    assert after - before < fixed + 20 * number
    assert all(value in digests for value in values[::100])
