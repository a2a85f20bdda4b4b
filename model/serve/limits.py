"""How much one client, and all together, may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of the server; those that a user may want to change are options of its command."""

    waiting: int = 64  # replies that wait for a slot, of one model
    choices: int = 16  # prompts x n of one request
    new_tokens: int | None = None  # of one reply; None: what the model's seq_len leaves
    body: int = 1 << 20  # bytes of a request's body
    stops: int = 16  # stop strings of one request
    stop_length: int = 256  # characters of a stop string
    top_logprobs: int = 20
    connections: int = 256  # open at a time
    header_seconds: float = 10.0  # for a request's line and headers to arrive
    body_seconds: float = 20.0  # for its body to arrive
    stalled_seconds: float = 20.0  # that a client may leave its reply unread
    grace_seconds: float = 1.5  # that replies may go on for after the server was asked to stop
