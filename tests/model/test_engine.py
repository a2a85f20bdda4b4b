"""The engine: its numbers are the network's, and no reply depends on what is made beside it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.engine import Engine, Piece, Reply, Sampling
from model.native.backend import CHUNK, NativeBackend
from model.native.build import find_compiler
from model.quantise import rounded_to_int8, to_int8
from model.sampling import choose, uniform
from model.tokenizer import ChatTokenizer
from model.torch_backend import TorchBackend
from model.transformer import Transformer
from tests.model.tiny import (
    ATTENTION,
    chat_config,
    lively_transformer,
    random_ids,
)

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")
BACKENDS = ["torch", pytest.param("native", marks=needs_compiler)]
BOTH = pytest.mark.parametrize("backend", BACKENDS)
# How far logits of order 1 may be from the uncached float32 ones.
TOLERANCE = {"fp32": 2e-5, "bf16": 0.1}

Backend = TorchBackend | NativeBackend


def make(backend: str, model: Transformer, slots: int = 4, weights: str = "fp32") -> Backend:
    return (TorchBackend if backend == "torch" else NativeBackend)(model, slots, weights)


def uncached(model: Transformer, ids: Sequence[int]) -> Tensor:
    """Logits (length, vocab_size) of the whole network."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)]))[0]


def sequences(count: int, *lengths: int) -> list[list[int]]:
    return [random_ids(1, length, seed=n)[0].tolist() for n, length in enumerate(lengths[:count])]


# --- the same numbers as without a cache


@BOTH
@pytest.mark.parametrize("kv_heads", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("weights", TOLERANCE)
@pytest.mark.parametrize("chunks", [(9,), (1,) * 9, (4, 1, 4), (8, 1)], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_cached_logits_are_the_uncached_ones(
    backend: str, kv_heads: int, weights: str, chunks: tuple[int, ...], rows: int
) -> None:
    changes = {"qk_norm": kv_heads == 2, "tie_embeddings": rows == 3}
    model = lively_transformer(kv_heads=kv_heads, **changes)
    engine = make(backend, model, weights=weights)
    # Unequal lengths, of which all but the last 7 tokens are prefilled, in parts.
    texts = sequences(rows, 16, 29, 10)
    slots = [2, 0, 3][:rows]
    lengths = [len(text) - 7 for text in texts]
    tolerance = TOLERANCE[weights]
    for text, slot, length in zip(texts, slots, lengths, strict=True):
        done = 0
        for size in (*chunks, length - sum(chunks)):
            part = text[done : min(done + size, length)]
            if part:
                logits = engine.prefill(slot, part, done)
                done += len(part)
                expected = uncached(model, text[:done])[-1]
                torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
    for step in range(7):
        at = [length + step for length in lengths]
        tokens = [text[place] for text, place in zip(texts, at, strict=True)]
        logits = engine.decode(slots, tokens, at)
        for row, text, place in zip(logits, texts, at, strict=True):
            expected = uncached(model, text[: place + 1])[-1]
            torch.testing.assert_close(row, expected, atol=tolerance, rtol=0)


@BOTH
@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": 40, "num_heads": 2, "kv_heads": 1, "d_ff": 33},  # heads of 20
        {"d_model": 12, "num_heads": 6, "kv_heads": 2, "d_ff": 5, "vocab_size": 31},  # of 2
        {"d_model": 96, "num_heads": 1, "kv_heads": 1, "num_layers": 1},  # of 96
        {"head_dim": 68, "num_layers": 3, "tie_embeddings": False},
        {"vocab_size": 300, "seq_len": 200, "rope_theta": 100.0, "norm_eps": 1e-3},
    ],
    ids=str,
)
def test_shapes_that_are_no_multiples_of_vectors(backend: str, changes: dict[str, Any]) -> None:
    model = lively_transformer(**changes)
    config = model.config
    length = config.seq_len - 3
    text = random_ids(1, config.seq_len, config.vocab_size)[0].tolist()
    engine = make(backend, model, slots=2)
    expected = uncached(model, text)
    logits = engine.prefill(1, text[:length])
    torch.testing.assert_close(logits, expected[length - 1], atol=5e-5, rtol=0)
    for place in range(length, config.seq_len):
        (logits,) = engine.decode([1], [text[place]], [place])
        torch.testing.assert_close(logits, expected[place], atol=5e-5, rtol=0)


@BOTH
def test_int8_is_the_network_with_weights_rounded_to_int8(backend: str) -> None:
    for changes in ({}, {"tie_embeddings": False, "qk_norm": True}):
        model = lively_transformer(**changes)
        text = random_ids(1, 20)[0].tolist()
        exact = uncached(model, text)[-1]
        got = make(backend, model, weights="int8").prefill(0, text)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.copy_(rounded_to_int8(weight))
        torch.testing.assert_close(got, uncached(model, text)[-1], atol=5e-5, rtol=0)
        assert 1e-4 < float((got - exact).abs().max()) < 0.3


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-20, 1e20))
def test_int8_is_off_by_at_most_half_a_step_of_its_row(seed: int, scale: float) -> None:
    weight = torch.randn(5, 30, generator=torch.Generator().manual_seed(seed)) * scale
    weight[3] = 0
    integers, scales = to_int8(weight)
    assert integers.dtype == torch.int8
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((rounded_to_int8(weight) - weight).abs() <= 0.5001 * step).all())
    assert float(scales[3]) == 0


@needs_compiler
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernel_sums_alike_however_rows_and_threads_are_divided(
    weights: str, threads: int
) -> None:
    model = lively_transformer(vocab_size=200, seq_len=160, d_model=64, d_ff=96, num_heads=4)
    text = random_ids(1, 140, 200)[0].tolist()
    one = NativeBackend(model, 1, weights, threads=1)
    expected = []
    for place, token in enumerate(text):
        expected.append(one.decode([0], [token], [place])[0])
    slots = 17
    many = NativeBackend(model, slots, weights, threads=threads)
    for size in (1, 2, 3, 5, 6, 7, 11, 13, CHUNK, 100):
        done = 0
        for start in range(0, 130, size):
            part = text[start : min(start + size, 130)]
            logits = many.prefill(4, part, start)
            done += len(part)
            assert torch.equal(logits, expected[done - 1])
    for slot in range(slots):
        assert torch.equal(many.prefill(slot, text[: 100 + slot]), expected[99 + slot])
    for rows in (range(1), range(2), range(9), range(slots)):
        order = list(rows)[::-1]
        at = [100 + slot for slot in order]
        logits = many.decode(order, [text[place] for place in at], at)
        assert all(torch.equal(row, expected[place]) for row, place in zip(logits, at, strict=True))


# --- replies


@pytest.fixture(scope="module")
def model(tokenizer: ChatTokenizer) -> Transformer:
    return lively_transformer(seed=2, **vars(chat_config(tokenizer, seq_len=64)))


@pytest.fixture(scope="module", params=BACKENDS)
def engine(request: pytest.FixtureRequest, model: Transformer, tokenizer: ChatTokenizer) -> Engine:
    return Engine(model, tokenizer, slots=4, native=request.param == "native")


def prompts(*lengths: int) -> list[list[int]]:
    return [random_ids(1, length, 300, seed=length)[0].tolist() for length in lengths]


UNEQUAL = (3, 40, 9, 1, 63, 20, 5, 30, 7)
SETTINGS = [
    Sampling(max_new_tokens=30, temperature=0),
    Sampling(max_new_tokens=25, temperature=1.0, seed=5),
    Sampling(max_new_tokens=30, temperature=0.9, top_k=20, seed=6, logprobs=3),
    Sampling(max_new_tokens=12, temperature=1.5, top_p=0.8, seed=7),
    Sampling(max_new_tokens=30, temperature=1.0, min_p=0.1, repetition_penalty=1.3, seed=8),
    Sampling(max_new_tokens=30, temperature=1.2, seed=9, stop=("e", "the")),
]


def joined(pieces: Iterator[Piece]) -> tuple[str, tuple[int, ...], str | None]:
    whole = list(pieces)
    assert all(piece.finish is None for piece in whole[:-1])
    return (
        "".join(piece.text for piece in whole),
        tuple(token for piece in whole for token in piece.token_ids),
        whole[-1].finish,
    )


def test_a_reply_is_the_same_alone_in_any_batch_and_streamed(
    engine: Engine, tokenizer: ChatTokenizer
) -> None:
    texts = prompts(*UNEQUAL)
    settings = [SETTINGS[n % len(SETTINGS)] for n in range(len(texts))]
    together = engine.replies(texts, settings)
    backwards = engine.replies(texts[::-1], settings[::-1])[::-1]
    assert together == backwards
    for text, sampling, reply in zip(texts, settings, together, strict=True):
        assert engine.replies([text], sampling) == [reply]
        assert joined(engine.stream(text, sampling)) == (reply.text, reply.token_ids, reply.finish)
        assert reply.prompt_tokens == len(text)
        if not sampling.stop:
            assert reply.text == tokenizer.decode(reply.token_ids)
    assert engine.free == 4
    assert len({reply.token_ids for reply in together}) > 6


@settings(max_examples=15)
@given(data=st.data())
def test_replies_that_come_and_go_leave_the_others_as_they_are(
    engine: Engine, data: st.DataObject
) -> None:
    texts = prompts(*UNEQUAL)
    for handle in list(engine._live):  # hypothesis may break an example off anywhere
        engine.cancel(handle)
    expected = [engine.replies([text], SETTINGS[n % 6])[0] for n, text in enumerate(texts)]
    running: dict[int, int] = {}
    got: dict[int, list[Piece]] = {}
    for _ in range(data.draw(st.integers(5, 40))):
        what = data.draw(st.sampled_from(["add", "cancel", "step", "step", "step"]))
        if what == "add" and engine.free:
            number = data.draw(st.integers(0, len(texts) - 1))
            handle = engine.add(texts[number], SETTINGS[number % 6])
            running[handle], got[handle] = number, []
        elif what == "cancel" and running:
            handle = data.draw(st.sampled_from(sorted(running)))
            engine.cancel(handle)
            del running[handle]
        else:
            for handle, piece in engine.step():
                got[handle].append(piece)
                if piece.finish:
                    reply = expected[running.pop(handle)]
                    assert joined(iter(got[handle])) == (
                        reply.text, reply.token_ids, reply.finish,
                    )  # fmt: skip
    for handle, number in running.items():
        ids = tuple(token for piece in got[handle] for token in piece.token_ids)
        assert expected[number].token_ids[: len(ids)] == ids
        engine.cancel(handle)
        engine.cancel(handle)
    assert engine.free == 4
    assert engine.step() == []


def test_a_stream_leaves_replies_that_are_under_way_alone(engine: Engine) -> None:
    first, second = prompts(5, 8)
    sampling = SETTINGS[1]
    alone = engine.replies([first], sampling)[0]
    handle = engine.add(first, sampling)
    pieces = [piece for _, piece in engine.step()]
    list(engine.stream(second, SETTINGS[0]))
    engine.replies(prompts(4, 6, 7, 8, 9), SETTINGS[0])
    while not pieces[-1].finish:
        pieces += [piece for at, piece in engine.step() if at == handle]
    assert joined(iter(pieces)) == (alone.text, alone.token_ids, alone.finish)


def test_a_stream_that_is_left_early_frees_its_slot(engine: Engine) -> None:
    pieces = engine.stream(prompts(5)[0], SETTINGS[0])
    assert engine.free == 4
    next(pieces)
    assert engine.free == 3
    pieces.close()
    assert engine.free == 4


def test_greedy_tokens_are_those_of_the_whole_network_each_time(
    engine: Engine, model: Transformer
) -> None:
    for prompt in prompts(3, 30):
        sampling = Sampling(max_new_tokens=20, temperature=0)
        ids = list(prompt)
        for piece in engine.stream(prompt, sampling, end=()):
            assert piece.token_ids == (int(uncached(model, ids)[-1].argmax()),)
            ids += piece.token_ids
        assert len(ids) == len(prompt) + 20


def test_sampled_tokens_are_those_of_the_definition(engine: Engine, model: Transformer) -> None:
    for sampling in SETTINGS[1:5]:
        assert sampling.seed is not None
        (reply,) = engine.replies(prompts(9), sampling, end=())
        ids = prompts(9)[0]
        for position, token in enumerate(reply.token_ids):
            logits = uncached(model, ids)[-1]
            assert token == choose(logits, sampling, uniform(sampling.seed, position), ids)
            ids.append(token)
        assert len(reply.token_ids) == sampling.max_new_tokens


def test_log_probabilities_are_those_of_the_model(engine: Engine, model: Transformer) -> None:
    (reply,) = engine.replies(
        prompts(6), Sampling(max_new_tokens=10, temperature=2.0, top_k=5, seed=1, logprobs=3), ()
    )
    ids = prompts(6)[0]
    assert len(reply.logprobs) == 10
    for each in reply.logprobs:
        expected = uncached(model, ids)[-1].log_softmax(dim=-1)
        assert each.logprob == pytest.approx(float(expected[each.token_id]), abs=1e-4)
        values, tokens = expected.topk(3)
        assert [token for token, _ in each.top] == tokens.tolist()
        assert [value for _, value in each.top] == pytest.approx(values.tolist(), abs=1e-4)
        ids.append(each.token_id)
    assert tuple(each.token_id for each in reply.logprobs) == reply.token_ids
    many = Sampling(max_new_tokens=1, logprobs=10**6)
    assert len(engine.replies(prompts(3), many, ())[0].logprobs[0].top) == model.config.vocab_size


def test_without_a_seed_torchs_generator_decides(engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=20, temperature=1.0)
    made = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        made.append(engine.replies(prompts(5, 5), sampling, end=()))
    assert made[0] == made[1] != made[2]
    assert made[0][0] != made[0][1]


# --- how replies end


def test_a_reply_ends_at_its_limit_or_when_the_context_is_full(engine: Engine) -> None:
    for length, new, made, finish in (
        (10, 0, 0, "length"),
        (10, 1, 1, "length"),
        (10, 54, 54, "length"),
        (10, 55, 54, "context"),
        (63, 1, 1, "length"),
        (63, 2, 1, "context"),
    ):
        (reply,) = engine.replies(prompts(length), Sampling(max_new_tokens=new, seed=0), end=())
        assert (len(reply.token_ids), reply.finish) == (made, finish)


def test_the_token_that_ends_a_reply_is_not_part_of_it(engine: Engine) -> None:
    greedy = Sampling(max_new_tokens=20, temperature=0, logprobs=0)
    (whole,) = engine.replies(prompts(5), greedy, end=())
    end = whole.token_ids[6]
    place = whole.token_ids.index(end)
    (reply,) = engine.replies(prompts(5), greedy, end=(end, 299))
    assert reply.finish == "stop"
    assert reply.token_ids == whole.token_ids[:place]
    assert reply.logprobs == whole.logprobs[:place]


def test_a_stop_string_ends_the_text_before_it(engine: Engine, tokenizer: ChatTokenizer) -> None:
    sampling = Sampling(max_new_tokens=40, temperature=1.0, seed=3)
    (whole,) = engine.replies(prompts(5), sampling, end=())
    text = whole.text
    for start in range(5, len(text) - 4, 7):
        stop = text[start : start + 4]
        sampling = Sampling(max_new_tokens=40, temperature=1.0, seed=3, stop=("\0never", stop))
        pieces = list(engine.stream(prompts(5)[0], sampling, end=()))
        assert joined(iter(pieces))[0] == text[: text.index(stop)]
        assert pieces[-1].finish == "stop"
        ids = joined(iter(pieces))[1]
        assert whole.token_ids[: len(ids)] == ids
        assert stop in tokenizer.decode(ids)
        assert stop not in tokenizer.decode(ids[:-1])


def test_text_held_back_is_given_at_the_end(engine: Engine) -> None:
    (whole,) = engine.replies(prompts(5), Sampling(max_new_tokens=20, seed=3), end=())
    sampling = Sampling(max_new_tokens=20, seed=3, stop=(whole.text[-3:] + "\0never",))
    (reply,) = engine.replies(prompts(5), sampling, end=())
    assert reply == whole


# --- what is refused


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([1] * 64, "the prompt has 64 tokens: no room for a reply in the model's 64"),
        ([1, -1], "the prompt's id -1 is not in the vocabulary of 3"),
        ([1, 10**9], "the prompt's id 1000000000 is not in the vocabulary of 3"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_a_value_error_at_once(
    engine: Engine, prompt: list[int], message: str
) -> None:
    for call in (
        lambda: engine.stream(prompt),
        lambda: engine.add(prompt, Sampling()),
        lambda: engine.replies([[1], prompt]),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert engine.free == 4


def test_a_reply_without_a_slot_is_a_runtime_error(engine: Engine) -> None:
    handles = [engine.add([1, 2], Sampling()) for _ in range(4)]
    for call in (
        lambda: engine.add([1], Sampling()),
        lambda: next(engine.stream([1])),
        lambda: engine.replies([[1]]),
    ):
        with pytest.raises(RuntimeError, match="no slot is free"):
            call()
    for handle in handles:
        engine.cancel(handle)
    assert engine.free == 4


def test_replies_want_one_sampling_or_one_for_each(engine: Engine) -> None:
    with pytest.raises(ValueError, match="2 samplings for 3 prompts"):
        engine.replies([[1]] * 3, [Sampling()] * 2)
    assert engine.replies([]) == []


@BOTH
def test_a_damaged_model_is_a_value_error_and_no_reply(
    tokenizer: ChatTokenizer, backend: str
) -> None:
    for value in (math.nan, math.inf):
        model = lively_transformer(**vars(chat_config(tokenizer)))
        with torch.no_grad():
            model.norm.weight[3] = value
        engine = Engine(model, tokenizer, slots=2, native=backend == "native")
        for sampling in SETTINGS[:3]:
            with pytest.raises(ValueError, match="its weights are damaged"):
                engine.replies(prompts(4, 5), sampling)
        assert engine.free == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"slots": 0}, "slots 0 is below 1"),
        ({"weights": "int4"}, "weights 'int4' is none of auto, fp32, bf16, int8"),
    ],
)
def test_a_setting_out_of_range_is_a_value_error(
    model: Transformer, tokenizer: ChatTokenizer, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer, **setting)


def test_weights_are_chosen_by_size(model: Transformer, tokenizer: ChatTokenizer) -> None:
    assert Engine(model, tokenizer, native=False).backend == "torch fp32"
    large = Transformer(
        chat_config(tokenizer, d_model=512, d_ff=2048, num_layers=1, num_heads=2, kv_heads=2)
    )
    assert large.config.num_parameters() > 2**22
    assert Engine(large, tokenizer, native=False).backend == "torch bf16"
    assert Engine(large, tokenizer, native=False, weights="int8").backend == "torch int8"


def test_a_reply_is_a_record(engine: Engine) -> None:
    (reply,) = engine.replies(prompts(5), SETTINGS[0])
    assert isinstance(reply, Reply)
    with pytest.raises(AttributeError):
        reply.text = ""  # type: ignore[misc]
