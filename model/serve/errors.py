"""Errors in the shape of the OpenAI API."""

from typing import Any

LONGEST_MESSAGE = 500

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """A request that is answered with an error.

    ``param`` is the request's field, ``code`` a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = shortened(message)
        self.param = shortened(param, 100) if param is not None else None
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The error as the API's clients read it."""
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def too_busy(message: str) -> ApiError:
    """503, and when to come again."""
    return ApiError(503, message, code="overloaded", headers={"retry-after": "1"})


def shortened(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """``text`` as one line: what a client sent is not sent back at length."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
