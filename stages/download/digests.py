"""Which conversations have been seen: a set of digests that stays small beside Python's own."""

KEPT = 16  # bytes of a digest that tell it from all others
_KEY = 2  # of these, the bytes that choose a bucket


class Digests:
    """A set of 128-bit digests in about 20 bytes each.

    A bucket is the rests of its digests one after another, searched as a string is: some
    hundred bytes at a million digests, and still but 20 kB at a hundred million.
    """

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = [None] * 256**_KEY

    def __contains__(self, digest: bytes) -> bool:
        bucket = self._buckets[int.from_bytes(digest[:_KEY], "big")]
        rest = digest[_KEY:KEPT]
        at = -1 if bucket is None else bucket.find(rest)
        while at > 0 and at % len(rest):  # an end and a beginning that look alike
            at = bucket.find(rest, at + 1)  # type: ignore[union-attr]
        return at >= 0

    def add(self, digest: bytes) -> None:
        """Adds a digest that is not in the set."""
        key = int.from_bytes(digest[:_KEY], "big")
        bucket = self._buckets[key]
        if bucket is None:
            bucket = self._buckets[key] = bytearray()
        bucket += digest[_KEY:KEPT]
