"""The server under 1 and 16 clients: ``python -m tests.benchmarks.serving`` (README.md).

Beside it the engine alone, with the same prompts in batches of as many; or, with ``--url``, another
server of the OpenAI API that is up.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from model.tokenizer import ChatTokenizer
from tests.benchmarks.shapes import SHAPES

TOKENIZER = Path("data/tokenizer")
PROMPT_TOKENS = 64
NEW_TOKENS = 128
CLIENTS = (1, 16)
HEADER = (
    "| | clients | tokens/s | first token: median (worst) | reply: median |\n"
    "|---|---:|---:|---:|---:|"
)


@dataclass(frozen=True)
class Timing:
    """One reply: its tokens, and the seconds to the first and to the last of them."""

    tokens: int
    first: float
    whole: float


def prompts(tokenizer: ChatTokenizer, count: int, seed: int) -> list[str]:
    """Messages of random words, each of PROMPT_TOKENS tokens in the template or a few less."""
    chance = random.Random(seed)
    words = [
        tokenizer.decode([token])
        for token in range(300, tokenizer.vocab_size)
        if tokenizer.decode([token]).strip().isalpha()
    ]
    texts = []
    for _ in range(count):
        text = ""
        while True:
            longer = text + chance.choice(words)
            messages = [{"role": "user", "content": longer}]
            ids = tokenizer.encode_chat(messages, add_generation_prompt=True)
            if len(ids) > PROMPT_TOKENS:
                break
            text = longer
        texts.append(text)
    return texts


async def ask(host: str, port: int, path: str, model: str | None, text: str) -> Timing:
    """One streamed chat completion, read as it comes."""
    content = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": NEW_TOKENS,
        "temperature": 0.8,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"model": model} if model else {}),
    }
    body = json.dumps(content).encode()
    head = (
        f"POST {path}/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head.encode() + body)
    first, chunks, usage = None, 0, None
    async for line in reader:
        if not line.startswith(b"data: {"):
            if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                raise SystemExit(f"serving: the server answered: {line.decode().strip()}")
            continue
        event = json.loads(line.removeprefix(b"data: "))
        usage = event.get("usage") or usage
        if event.get("choices") and event["choices"][0]["delta"].get("content"):
            chunks += 1
            first = first or time.perf_counter() - begun
    whole = time.perf_counter() - begun
    writer.close()
    return Timing(usage["completion_tokens"] if usage else chunks, first or whole, whole)


async def under(clients: int, url: str, model: str | None, texts: list[str]) -> list[Timing]:
    """So many clients, each with its next request as soon as the last is answered."""
    parts = urlsplit(url)
    assert parts.hostname
    waiting = iter(texts)
    timings: list[Timing] = []

    async def client() -> None:
        for text in waiting:
            timings.append(
                await ask(parts.hostname or "", parts.port or 80, parts.path, model, text)
            )

    await asyncio.gather(*(client() for _ in range(clients)))
    return timings


def row(name: str, clients: int, timings: list[Timing], seconds: float) -> str:
    """A line of the table."""
    rate = sum(timing.tokens for timing in timings) / seconds
    first = [1000 * timing.first for timing in timings]
    whole = median(timing.whole for timing in timings)
    return (
        f"| {name} | {clients} | {rate:,.0f} | {median(first):,.0f} ms ({max(first):,.0f}) "
        f"| {whole:.3f} s |"
    )


def measure(name: str, url: str, model: str | None, tokenizer: ChatTokenizer, count: int) -> None:
    """Prints a row for each number of clients."""
    asyncio.run(under(1, url, model, prompts(tokenizer, 2, 99)))
    for clients in CLIENTS:
        texts = prompts(tokenizer, count * clients, clients)
        begun = time.perf_counter()
        timings = asyncio.run(under(clients, url, model, texts))
        print(row(name, clients, timings, time.perf_counter() - begun), flush=True)


def measure_engine(folder: Path, tokenizer: ChatTokenizer, count: int) -> None:
    """Prints a row for each batch."""
    from model.engine import Engine, Sampling

    engine = Engine.open(folder)
    for clients in CLIENTS:
        ids = [
            tokenizer.encode_chat([{"role": "user", "content": text}], add_generation_prompt=True)
            for text in prompts(tokenizer, count * clients, clients)
        ]
        engine.replies(ids[:clients], Sampling(8))
        begun = time.perf_counter()
        tokens = 0
        for start in range(0, len(ids), clients):
            replies = engine.replies(ids[start : start + clients], Sampling(NEW_TOKENS))
            tokens += sum(len(reply.token_ids) for reply in replies)
        rate = tokens / (time.perf_counter() - begun)
        print(f"| the engine alone, {engine.backend} | {clients} | {rate:,.0f} | | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving")
    parser.add_argument("--shape", choices=SHAPES, default="S", help="of the random model")
    parser.add_argument("--requests", type=int, default=8, help="of each client")
    parser.add_argument("--keep", type=Path, help="make the model in this folder, and leave it")
    parser.add_argument("--url", help="measure this server instead, as http://127.0.0.1:8001/v1")
    parser.add_argument("--model", help="the model's name there")
    arguments = parser.parse_args()
    if not TOKENIZER.is_dir():
        sys.exit("serving: data/tokenizer is missing: run `dvc repro tokenizer`")
    tokenizer = ChatTokenizer.load(TOKENIZER)
    print(HEADER)
    if arguments.url:
        measure(arguments.url, arguments.url, arguments.model, tokenizer, arguments.requests)
        return

    import torch

    from model.transformer import Transformer
    from tests.model.serve.running import serving_process
    from tests.model.tiny import write_folder

    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch, "model")
        write_folder(folder, Transformer(SHAPES[arguments.shape].config()), TOKENIZER)
        measure_engine(folder, tokenizer, arguments.requests)
        with serving_process(folder) as (running, _):
            url = f"{running.url}/v1"
            measure("model.serve", url, None, tokenizer, arguments.requests)


if __name__ == "__main__":
    main()
