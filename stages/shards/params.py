"""Schema of the ``shards`` section."""

from typing import Annotated

from pydantic import Field

from stages.params import Section


class ShardsParams(Section):
    """How tokens are laid out in files."""

    tokens_per_shard: Annotated[int, Field(ge=1)]
