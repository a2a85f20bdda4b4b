"""One contender that generates at one shape, in a process of its own.

``generation`` calls ``generation_measure CONTENDER SHAPE REPEATS BATCH…``, which prints as JSON, of
each batch, the seconds of each run and greedy tokens to compare.
"""

import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.hugging_face import to_hugging_face
from model.transformer import Transformer
from tests.benchmarks.shapes import SHAPES, Shape

PROMPT, NEW, TOP_K, TEMPERATURE = 64, 128, 50, 0.8
GREEDY = 24  # tokens that are compared
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# (prompts (batch, length), new tokens, greedy) -> new tokens (batch, new)
Generate = Callable[[Tensor, int, bool], Tensor]


def make_model(shape: Shape) -> Transformer:
    """The same weights in every process; large ones, so that greedy tokens vary."""
    model = Transformer(shape.config())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=weight.shape[1] ** -0.5, generator=generator)
    return model.eval()


def prompts(shape: Shape, batch: int) -> Tensor:
    """Random ids (batch, PROMPT), clear of the smallest, which may mean something."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(16, shape.vocab_size, (batch, PROMPT), generator=generator)


def pick(logits: Tensor, greedy: bool) -> Tensor:
    """Next ids (batch, 1) for logits (batch, vocab_size), as nanoGPT picks them."""
    if greedy:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits / TEMPERATURE
    values, _ = logits.topk(TOP_K)
    logits = logits.masked_fill(logits < values[:, -1:], -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1)


def without_cache(logits_of: Callable[[Tensor], Tensor]) -> Generate:
    """The whole sequence through the network for every token."""

    def generate(ids: Tensor, new: int, greedy: bool) -> Tensor:
        for _ in range(new):
            ids = torch.cat((ids, pick(logits_of(ids)[:, -1], greedy)), dim=1)
        return ids[:, -new:]

    return generate


def plain(shape: Shape, dtype: torch.dtype) -> Generate:
    """Parley's network, called as training calls it."""
    return without_cache(make_model(shape).to(dtype))


def nanogpt(shape: Shape, dtype: torch.dtype) -> Generate:
    """nanoGPT's model by way of transformers' GPT-2, with its ``generate``: no cache."""
    from tests.benchmarks.peers import nanogpt as make

    loss_of = make(shape).eval().to(dtype)
    return without_cache(loss_of.logits_of)


def litgpt(shape: Shape, dtype: torch.dtype) -> Generate:
    """litgpt's GPT on its cache, with its ``next_token`` for one row and ``pick`` for more."""
    from litgpt.generate.base import next_token

    from tests.benchmarks.peers import litgpt_llama

    module = litgpt_llama(shape).model
    copy_to_litgpt(make_model(shape), module)
    module = module.eval().to(dtype)
    batches: list[int] = []

    def generate(ids: Tensor, new: int, greedy: bool) -> Tensor:
        batch, length = ids.shape
        if batches[-1:] != [batch]:
            module.set_kv_cache(batch_size=batch, max_seq_length=shape.seq_len, dtype=dtype)
            batches.append(batch)
        made = []
        position = torch.arange(length)
        for step in range(new):
            end = length + step
            if batch == 1:
                how = {"temperature": 0.0 if greedy else TEMPERATURE, "top_k": TOP_K}
                ids = next_token(module, position, ids, input_pos_maxp1=end, **how).view(1, 1)
            else:
                ids = pick(module(ids, position, input_pos_maxp1=end)[:, -1], greedy)
            made.append(ids)
            position = torch.tensor([end])
        return torch.cat(made, dim=1)

    return generate


def copy_to_litgpt(model: Transformer, module: nn.Module) -> None:
    """The weights of ``model`` as litgpt names them: its matrices lie as ours."""
    names = {
        "attention_norm": "norm_1",
        "attention.qkv": "attn.qkv",
        "attention.out": "attn.proj",
        "feed_forward_norm": "norm_2",
        "feed_forward.down": "mlp.proj",
    }
    state = {
        "transformer.wte.weight": model.embedding.weight,
        "lm_head.weight": model.head.weight,
        "transformer.ln_f.weight": model.norm.weight,
    }
    own = model.state_dict()
    for layer in range(model.config.num_layers):
        here, there = f"blocks.{layer}.", f"transformer.h.{layer}."
        for ours, theirs in names.items():
            state[f"{there}{theirs}.weight"] = own[f"{here}{ours}.weight"]
        gate, up = own[f"{here}feed_forward.gate_up.weight"].chunk(2)
        state[f"{there}mlp.fc_1.weight"], state[f"{there}mlp.fc_2.weight"] = gate, up
    module.load_state_dict(state)


def transformers_(static: bool) -> Callable[[Shape, torch.dtype], Generate]:
    """transformers' Llama and its ``generate``: a dynamic cache, or a static one, compiled."""

    def make(shape: Shape, dtype: torch.dtype) -> Generate:
        from tests.benchmarks.peers import transformers_llama

        module = transformers_llama(shape).model
        model = make_model(shape)
        missing = module.load_state_dict(
            to_hugging_face(model.state_dict(), model.config), strict=False
        )
        assert missing.missing_keys == ["lm_head.weight"]
        module.tie_weights()
        module = module.eval().to(dtype)
        module.config.use_cache = True
        if static:
            module.forward = torch.compile(module.forward)

        def generate(ids: Tensor, new: int, greedy: bool) -> Tensor:
            how = {"do_sample": False} if greedy else {"do_sample": True, "top_k": TOP_K}
            output = module.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=0,
                use_cache=True,
                cache_implementation="static" if static else None,
                temperature=None if greedy else TEMPERATURE,
                **how,
            )
            return output[:, -new:]

        return generate

    return make


def parley(native: bool, weights: str, shape: Shape, batch: int) -> Generate:
    """The engine, with as many slots as rows."""
    from model.engine import Engine, Sampling
    from model.tokenizer import ChatTokenizer

    words = (f"{a} {b}" for a in range(99) for b in range(99))
    engine = Engine(
        make_model(shape),
        ChatTokenizer.train(words, 300),
        slots=batch,
        weights=weights,
        native=native,
    )

    def generate(ids: Tensor, new: int, greedy: bool) -> Tensor:
        temperature = 0.0 if greedy else TEMPERATURE
        sampling = Sampling(max_new_tokens=new, temperature=temperature, top_k=TOP_K)
        replies = engine.replies(ids.tolist(), sampling, end=())
        return torch.tensor([reply.token_ids for reply in replies])

    return generate


PEERS: dict[str, Callable[[Shape, torch.dtype], Generate]] = {
    "plain": plain,
    "nanogpt": nanogpt,
    "litgpt": litgpt,
    "transformers-dynamic": transformers_(static=False),
    "transformers-static": transformers_(static=True),
}


def make_generate(contender: str, shape: Shape, batch: int) -> Generate:
    """What a contender such as ``litgpt-bf16`` or ``parley-native-int8`` generates with."""
    name, _, weights = contender.rpartition("-")
    if name in PEERS:
        return PEERS[name](shape, DTYPES[weights])
    return parley(name == "parley-native", weights, shape, batch)


def measure(contender: str, shape: Shape, batch: int, repeats: int) -> dict[str, object]:
    """Seconds of ``repeats`` runs after one that doesn't count, and greedy tokens."""
    generate = make_generate(contender, shape, batch)
    ids = prompts(shape, batch)
    with torch.inference_mode():
        # Compiles where the contender does: as many tokens as are timed.
        greedy = generate(ids, NEW, True)[:, :GREEDY].tolist()
        torch.manual_seed(0)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            made = generate(ids, NEW, False)
            seconds.append(time.perf_counter() - started)
            assert made.shape == (batch, NEW)
    return {"seconds": seconds, "greedy": greedy}


def read_speed() -> float:
    """Bytes/s at which all threads together read memory far beyond the caches: the best of some."""
    data = torch.ones(2**27)  # 512 MiB
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - started)
    return data.nbytes / best


def main() -> None:
    contender, shape, repeats, *batches = sys.argv[1:]
    if contender == "memory":
        print(json.dumps({"memory": read_speed()}))
        return
    print(
        json.dumps(
            {
                batch: measure(contender, SHAPES[shape], int(batch), int(repeats))
                for batch in batches
            }
        )
    )


if __name__ == "__main__":
    main()
