"""What a compressor that knows nothing makes of the validation set's text, in bits per byte.

Over the contents of all messages in the order of ``validation.jsonl``, in UTF-8, one directly after
another: the very bytes that the model's bits are divided by. (The model also pays for the ends of
messages and for whose turn it is; the compressor begins without any training.)

* ``bzip2``: level 9, blocks of 900,000 bytes. There is one encoder of it, unchanged since 1996 and
  1.0 in 2000, so the figure is the same on every machine: it is a metric.
* ``zlib``: level 9. Its bytes depend on which zlib Python is linked to (zlib, zlib-ng, Intel's), so
  it would make a stage's output depend on the machine: it is told, and stands in the local file.
"""

import bz2
import zlib
from collections.abc import Iterable

from stages.conversations import Message
from stages.files import rounded


def compressed_bits_per_byte(conversations: Iterable[list[Message]]) -> dict[str, float]:
    """Bits per byte by ``bzip2`` and ``zlib``; empty for no text. Memory stays flat."""
    bzip2, deflate = bz2.BZ2Compressor(9), zlib.compressobj(9)
    raw = small = smaller = 0
    for messages in conversations:
        text = "".join(message["content"] for message in messages).encode()
        raw += len(text)
        small += len(bzip2.compress(text))
        smaller += len(deflate.compress(text))
    small += len(bzip2.flush())
    smaller += len(deflate.flush())
    if not raw:
        return {}
    return {"bzip2": rounded(8 * small / raw), "zlib": rounded(8 * smaller / raw)}
