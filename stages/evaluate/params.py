"""Schema of the ``evaluate`` section."""

from typing import Annotated

from pydantic import Field

from stages.params import Section


class EvaluateParams(Section):
    """What the samples answer and how they are drawn."""

    prompts: list[Annotated[str, Field(min_length=1)]]
    openings: Annotated[int, Field(ge=0)]
    max_new_tokens: Annotated[int, Field(gt=0)]
    temperature: Annotated[float, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
