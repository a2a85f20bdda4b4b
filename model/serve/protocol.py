"""Requests of the OpenAI API, as pydantic models.

A field that would change the reply and is not implemented is refused unless its value is neutral;
so is a field that nobody knows, since it may be a slip of the pen. Fields that change nothing here
are ignored by name.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from model.sampling import Sampling
from model.serve.errors import ApiError
from model.serve.limits import Limits

# Of a field that is not implemented: the value that asks for nothing.
NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "store": False,
    "suffix": "",
    "tool_choice": "none",
}
# Who asks, and how a service bills and stores: nothing of it changes a reply here.
IGNORED = {"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "user"}

TEXT_PARTS = ("text", "input_text", "output_text")


def _wrong(message: str, field: str | None = None) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{message}", {"message": message, "field": field})


def _asks_for_nothing(name: str, value: object) -> bool:
    if value is None or value == [] or value == {}:
        return True
    neutral = NEUTRAL.get(name)
    # To Python False is 0, but it is no penalty.
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


class Strict(BaseModel):
    """Values are taken as they are typed, and the first unknown field is an error.

    (pydantic's own ``extra="forbid"`` would list them all, and there may be a million.)
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise _wrong("must be a JSON object")
        for name, value in values.items():
            if name in cls.model_fields or name in cls.ignored or _asks_for_nothing(name, value):
                continue
            if name in NEUTRAL:
                raise _wrong("is not implemented: leave it out", name)
            raise _wrong("is not a field that this server knows", name)
        return values


def _content(value: object) -> str:
    """The text of a message: a string, or a list of parts, which are joined with newlines."""
    if isinstance(value, str):
        return value
    texts = []
    for part in value if isinstance(value, list) else [None]:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _wrong("must be a text or a list of parts of type text")
        if part["type"] not in TEXT_PARTS:
            raise _wrong(f"a part of type {part['type'][:100]!r} is no text: this model reads text")
        if not isinstance(part.get("text"), str):
            raise _wrong("has a part without a text")
        texts.append(part["text"])
    return "\n".join(texts)


def _stops(value: object) -> tuple[str, ...] | None:
    if value is None or value == []:
        return None
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise _wrong("must be a text or a list of texts, none of them empty")
    return tuple(stops)


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _prompts(value: object) -> list[str | list[int]]:
    if isinstance(value, str) or _is_ids(value):
        return [value]  # type: ignore[list-item]
    if (
        isinstance(value, list)
        and value
        and (all(isinstance(v, str) for v in value) or all(map(_is_ids, value)))
    ):
        return value
    raise _wrong("must be a text, a list of texts, a list of token ids, or a list of such lists")


class Message(Strict):
    """One message of a conversation."""

    ignored = frozenset({"refusal"})

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]

    def in_template(self) -> dict[str, str]:
        """The message as the template knows it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content}


class StreamOptions(Strict):
    """What a stream has besides the reply."""

    ignored = frozenset({"include_obfuscation"})

    include_usage: bool | None = None


class Generation(Strict):
    """What chat and plain completions have in common. None: as if it were left out."""

    ignored = frozenset(IGNORED)
    logprobs_field: ClassVar[str] = "logprobs"

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    stop: Annotated[tuple[str, ...] | None, BeforeValidator(_stops)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    # Beyond the API of OpenAI, with the names that vLLM gives them.
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)

    def asked_tokens(self) -> int | None:
        """The limit of new tokens that the client gave."""
        return self.max_tokens

    def asked_logprobs(self) -> int | None:
        """How many of the most probable tokens the client wants; None: no log-probabilities."""
        raise NotImplementedError

    def samplings(self, new_tokens: int, limits: Limits) -> list[Sampling]:
        """The settings of the ``n`` replies to a prompt, each of at most ``new_tokens``.

        With a seed, reply i draws with seed + i. Raises ApiError for what is over the limits.
        """
        count = self.n or 1
        if count > limits.choices:
            raise ApiError(400, f"n {count} is above {limits.choices}", param="n")
        stops = self.stop or ()
        if len(stops) > limits.stops:
            raise ApiError(400, f"more than {limits.stops} stop strings", param="stop")
        if any(len(stop) > limits.stop_length for stop in stops):
            message = f"a stop string has more than {limits.stop_length} characters"
            raise ApiError(400, message, param="stop")
        logprobs = self.asked_logprobs()
        if logprobs is not None and logprobs > limits.top_logprobs:
            field = self.logprobs_field
            raise ApiError(400, f"{field} is above {limits.top_logprobs}", param=field)
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            # -1 and 0 say "all" to vLLM and transformers.
            "top_k": self.top_k if self.top_k and self.top_k > 0 else None,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        settings: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        try:
            return [
                Sampling(
                    max_new_tokens=new_tokens,
                    stop=stops,
                    logprobs=logprobs,
                    seed=None if self.seed is None else (self.seed + i) % 2**63,
                    **settings,
                )
                for i in range(count)
            ]
        except ValueError as error:
            raise ApiError(400, str(error)) from None


class ChatRequest(Generation):
    """``POST /v1/chat/completions``."""

    logprobs_field = "top_logprobs"

    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    # As in OpenAI's responses API: what to do with a conversation that doesn't fit.
    truncation: Literal["auto", "disabled"] | None = None

    def asked_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def asked_logprobs(self) -> int | None:
        if not self.logprobs:
            if self.top_logprobs:
                raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
            return None
        return self.top_logprobs or 0


class CompletionRequest(Generation):
    """``POST /v1/completions``."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    logprobs: int | None = Field(None, ge=0)

    def asked_logprobs(self) -> int | None:
        return self.logprobs


def first_error(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request, in one line."""
    (first, *_) = error.errors(include_url=False, include_input=False)
    field = first.get("ctx", {}).get("field")
    place = ".".join(str(part)[:100] for part in (*first["loc"], *([field] if field else [])))
    message = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(400, f"{place}: {message}" if place else message, param=place or None)
