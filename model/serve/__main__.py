"""``python -m model.serve [folder …]``: models over the API of OpenAI, and a page to chat in."""

import argparse
import asyncio
import os
import socket
import sys
from dataclasses import replace

from model.cli import Failure, cannot_open, port, positive, run
from model.serve.limits import Limits

KEY = "PARLEY_API_KEY"
NEEDS = "the server needs FastAPI and uvicorn: pip install -e '.[serve]'"


def options() -> argparse.ArgumentParser:
    """The command line."""
    limits = Limits()
    parser = argparse.ArgumentParser(
        prog="python -m model.serve",
        description="Serve models over the OpenAI API, with a chat page at /. The environment's "
        f"{KEY}, when set, is the key that every request must bring.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "folders",
        nargs="*",
        default=["models/chat"],
        metavar="FOLDER",
        help="model folders, each FOLDER or NAME=FOLDER; default: models/chat",
    )
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    add("--port", type=port, default=8000, help="0 takes a free one (default: %(default)s)")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a further name (Host)")
    add("--without-key", action="store_true", help="listen beyond this machine without a key")
    add("--slots", type=positive, default=16, help="replies at a time (default: %(default)s)")
    add(
        "--waiting",
        type=positive,
        default=limits.waiting,
        help="replies of a model that may wait for a slot; more get 503 (default: %(default)s)",
    )
    add("--max-tokens", type=positive, help="of one reply (default: what the context leaves)")
    add("--max-n", type=positive, default=limits.choices, help="replies to one request")
    add("--max-body", type=positive, default=limits.body, help="bytes (default: %(default)s)")
    add("--weights", choices=("auto", "fp32", "bf16", "int8"), default="auto")
    add("--device", default="cpu", help="cpu, cuda, … (default: %(default)s)")
    return parser


def main() -> None:
    """Opens the models and serves them until a signal comes."""
    arguments = options().parse_args()
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise Failure(NEEDS) from None
    from model.serve.guard import Access, is_loopback
    from model.serve.models import named_folders

    key = _key()
    if key is None and not arguments.without_key and not is_loopback(arguments.host):
        raise Failure(
            f"--host {arguments.host} opens the server to the network: set {KEY} in the "
            "environment, or say --without-key"
        )
    try:
        folders = named_folders(arguments.folders)
    except ValueError as error:
        raise Failure(str(error)) from None
    listener = _listen(arguments.host, arguments.port)
    limits = replace(
        Limits(),
        waiting=arguments.waiting,
        new_tokens=arguments.max_tokens,
        choices=arguments.max_n,
        body=arguments.max_body,
    )
    access = Access(
        bound=arguments.host,
        hosts=frozenset(name.lower() for name in arguments.allow_host),
        key=key,
    )

    from model.engine import Engine
    from model.serve.app import make_app
    from model.serve.served import Served
    from model.serve.server import Server

    models = []
    for name, folder in folders.items():
        try:
            engine = Engine.open(
                folder, arguments.device, slots=arguments.slots, weights=arguments.weights
            )
        except (FileNotFoundError, ValueError) as error:
            raise cannot_open(folder, error) from None
        models.append(Served(name, engine, limits.waiting))
        say(f"{name}: {engine.model.config.num_parameters():,} parameters, {engine.backend}")
    server = Server(make_app(models, access, limits), [m.scheduler for m in models], limits)
    say(f"chat and API at {_url(listener)} (Ctrl-C stops)")
    asyncio.run(server.serve(sockets=[listener]))
    say("stopped")


def say(line: str) -> None:
    """One line of news for the person who started the server."""
    print(f"serve: {line}", file=sys.stderr, flush=True)


def _key() -> str | None:
    key = os.environ.get(KEY)
    if key is None:
        return None
    if not key or not all("!" <= character <= "~" for character in key):
        raise Failure(f"{KEY} must be visible ASCII characters without spaces, or not be set")
    return key


def _listen(host: str, port: int) -> socket.socket:
    """The socket to listen at; before the models are opened, so that a taken port shows at once."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Failure(f"can't listen at {host}, port {port}: {reason}") from None


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    run("serve", main)
