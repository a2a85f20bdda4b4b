"""The network on slots of keys and values, by the kernel."""

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int32, c_uint64, c_void_p

import torch
from torch import Tensor

from model.native.build import library
from model.quantise import to_int8
from model.sampling import Sampling, damaged
from model.transformer import Transformer, rotary_tables

PANEL = 32  # outputs of a panel, as in kernel.cpp
CHUNK = 64  # tokens of a prompt that are computed together
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
# Weights of fewer bytes are read from the processor's caches, by one thread as fast as by several
# that wait for one another.
SEVERAL_THREADS = 16 * 2**20


class _Shape(Structure):
    _fields_ = [
        *(
            (name, c_int32)
            for name in (
                *("vocab_size", "d_model", "layers", "heads", "kv_heads", "head_dim", "d_ff"),
                *("seq_len", "slots", "format", "threads", "rows"),
            )
        ),
        ("eps", c_float),
    ]


class _Matrix(Structure):
    _fields_ = [("panels", c_void_p), ("scales", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("attention_norm", "q_norm", "k_norm", "feed_forward_norm")),
    ]


class _Weights(Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)),
        ("head", _Matrix),
        ("embedding", _Matrix),
        *((name, c_void_p) for name in ("norm", "cos", "sin")),
    ]


class _Reply(Structure):
    _fields_ = [
        ("seed", c_uint64),
        *((name, c_double) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        *((name, c_int32) for name in ("top_k", "position", "token", "length")),
    ]


class NativeBackend:
    """Prefill, decode and choice of up to ``slots`` sequences on the CPU."""

    def __init__(
        self, model: Transformer, slots: int, weights: str, threads: int | None = None
    ) -> None:
        """``weights`` is fp32, bf16 or int8. ``threads`` is decided from the size by default.

        Raises NoKernel.
        """
        self._library = library()
        _declare(self._library)
        config = model.config
        size = BYTES[weights]
        if threads is None:
            large = size * config.num_parameters() >= SEVERAL_THREADS
            threads = torch.get_num_threads() if large else 1
        self.name = f"native {weights}"
        self.slots = slots
        self._rows = max(CHUNK, slots)
        self._vocab_size = config.vocab_size
        self._kept: list[Tensor] = []  # what the kernel points at
        self._weights = weights

        with torch.no_grad():
            state = model.state_dict()
            layers = (_Layer * config.num_layers)()
            for index, layer in enumerate(layers):
                block = {
                    name.removeprefix(f"blocks.{index}."): tensor
                    for name, tensor in state.items()
                    if name.startswith(f"blocks.{index}.")
                }
                layer.qkv = self._matrix(block["attention.qkv.weight"])
                layer.out = self._matrix(block["attention.out.weight"])
                layer.gate_up = self._matrix(_interleaved(block["feed_forward.gate_up.weight"]))
                layer.down = self._matrix(block["feed_forward.down.weight"])
                layer.attention_norm = self._vector(block["attention_norm.weight"])
                layer.feed_forward_norm = self._vector(block["feed_forward_norm.weight"])
                if config.qk_norm:
                    layer.q_norm = self._vector(block["attention.q_norm.weight"])
                    layer.k_norm = self._vector(block["attention.k_norm.weight"])
            cos, sin = (table[:, : config.head_dim // 2] for table in rotary_tables(config))
            tied = model.head.weight is model.embedding.weight
            pointers = _Weights(
                layers=layers,
                head=self._matrix(model.head.weight),
                embedding=_Matrix() if tied else self._matrix(model.embedding.weight, rows=True),
                norm=self._vector(model.norm.weight),
                cos=self._vector(cos),
                sin=self._vector(sin),
            )
        shape = _Shape(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            layers=config.num_layers,
            heads=config.num_heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            d_ff=config.d_ff,
            seq_len=config.seq_len,
            slots=slots,
            format=size,
            threads=threads,
            rows=self._rows,
            eps=config.norm_eps,
        )
        self._digest = self._digest_of(model)
        self._process = os.getpid()
        self._network = self._library.parley_new(byref(shape), byref(pointers))
        if not self._network:
            raise MemoryError(f"no memory for {slots} slots of {config.seq_len} tokens")
        self._replies = (_Reply * slots)()
        self._order = (c_int32 * slots)()
        self._logits = torch.empty(slots, config.vocab_size)
        self._logits_at = self._logits.data_ptr()

    def __del__(self) -> None:
        network = getattr(self, "_network", None)
        if network and self._process == os.getpid():
            self._library.parley_free(network)

    def fits(self, model: Transformer) -> bool:
        """Whether it was made in this process of the very weights that ``model`` has now."""
        return self._process == os.getpid() and self._digest == self._digest_of(model)

    def _digest_of(self, model: Transformer) -> list[int]:
        weights = [weight.detach().contiguous() for weight in model.parameters()]
        return [self._library.parley_digest(weight.data_ptr(), weight.nbytes) for weight in weights]

    def prefill(self, slot: int, ids: Sequence[int], past: int = 0) -> Tensor:
        """Puts ``ids`` behind a slot's first ``past`` tokens: logits (vocab_size,) of the last."""
        logits = torch.empty(self._vocab_size)
        self._prefill(slot, ids, past, logits)
        return logits

    def decode(self, slots: Sequence[int], tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """One more token for each of ``slots``, behind ``lengths``: logits (rows, vocab_size)."""
        count = len(slots)
        logits = torch.empty(count, self._vocab_size)
        integers = c_int32 * count
        self._library.parley_compute(
            self._network, count, integers(*slots), integers(*tokens), integers(*lengths), 0,
            logits.data_ptr(),
        )  # fmt: skip
        return logits

    def begin(self, slot: int, prompt: Sequence[int], sampling: Sampling, seed: int) -> int:
        """Computes a prompt and chooses the first token behind it.

        Raises ValueError for logits that are not finite.
        """
        if self._process != os.getpid():
            # The kernel's threads are not there: waiting for them would never end.
            raise RuntimeError("this engine was made before the process forked: make another")
        logits = self._logits[slot]
        self._prefill(slot, prompt, 0, logits)
        self._replies[slot] = _reply(sampling, seed, len(prompt))
        if sampling.repetition_penalty != 1:
            ids = (c_int32 * len(prompt))(*prompt)
            self._library.parley_see(self._network, slot, ids, len(prompt))
        reply = self._replies[slot]
        if not self._library.parley_choose(self._network, slot, byref(reply), logits.data_ptr()):
            raise damaged()
        return int(reply.token)

    def step(self, slots: Sequence[int]) -> list[int]:
        """The next token of each of ``slots``. Raises ValueError for logits that are not finite."""
        order, replies = self._order, self._replies
        for row, slot in enumerate(slots):
            order[row] = slot
        finite = self._library.parley_step(
            self._network, len(slots), order, replies, self._vocab_size, self._logits_at
        )
        if not finite:
            raise damaged()
        return [replies[slot].token for slot in slots]

    def logits(self, slot: int) -> Tensor:
        """Those (vocab_size,) that the newest token of ``slot`` was chosen by."""
        return self._logits[slot]

    def _prefill(self, slot: int, ids: Sequence[int], past: int, logits: Tensor) -> None:
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            count = len(part)
            integers = c_int32 * count
            position = past + start
            # Logits are those of the last token alone.
            first = count - 1 if start + count == len(ids) else count
            self._library.parley_compute(
                self._network,
                count,
                integers(*[slot] * count),
                integers(*part),
                integers(*range(position, position + count)),
                first,
                logits.data_ptr(),
            )

    def _vector(self, weight: Tensor) -> int:
        return self._keep(weight.detach().float().contiguous().clone())

    def _matrix(self, weight: Tensor, rows: bool = False) -> _Matrix:
        """A matrix (outputs, inputs) in panels, or as it is with ``rows``."""
        weight, scales = weight.detach(), None
        outputs, inputs = weight.shape
        padded = outputs if rows else -(-outputs // PANEL) * PANEL
        if self._weights == "int8":
            weight, factors = to_int8(weight)
            scales = self._keep(torch.cat((factors, torch.zeros(padded - outputs))))
        else:
            weight = weight.to(torch.bfloat16 if self._weights == "bf16" else torch.float32)
        if not rows:
            packed = weight.new_zeros(padded // PANEL, inputs, PANEL)
            whole = outputs // PANEL
            packed[:whole] = weight[: whole * PANEL].view(whole, PANEL, inputs).transpose(1, 2)
            if padded > outputs:
                packed[whole, :, : outputs % PANEL] = weight[whole * PANEL :].T
            weight = packed
        return _Matrix(self._keep(weight.contiguous().clone() if rows else weight), scales)

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def _reply(sampling: Sampling, seed: int, length: int) -> _Reply:
    """A reply that begins, behind ``length`` tokens."""
    return _Reply(
        seed=seed % 2**64,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        top_k=min(sampling.top_k or 0, 2**31 - 1),
        length=length,
    )


def _interleaved(gate_up: Tensor) -> Tensor:
    """Panels of gate and up in turn, each padded to whole panels, for one thread to multiply."""
    gate, up = gate_up.detach().chunk(2)
    width, inputs = gate.shape
    padded = -(-width // PANEL) * PANEL
    both = gate_up.new_zeros(2, padded, inputs)
    both[0, :width], both[1, :width] = gate, up
    return both.view(2, padded // PANEL, PANEL, inputs).transpose(0, 1).reshape(2 * padded, inputs)


def _declare(kernel: ctypes.CDLL) -> None:
    """Tells ctypes the kernel's functions."""
    integers = POINTER(c_int32)
    kernel.parley_new.restype = c_void_p
    kernel.parley_new.argtypes = [POINTER(_Shape), POINTER(_Weights)]
    kernel.parley_free.restype = None
    kernel.parley_free.argtypes = [c_void_p]
    kernel.parley_digest.restype = c_uint64
    kernel.parley_digest.argtypes = [c_void_p, c_uint64]
    kernel.parley_compute.restype = None
    kernel.parley_compute.argtypes = [
        *(c_void_p, c_int32, integers, integers, integers, c_int32, c_void_p),
    ]
    kernel.parley_see.restype = None
    kernel.parley_see.argtypes = [c_void_p, c_int32, integers, c_int32]
    kernel.parley_choose.restype = c_int32
    kernel.parley_choose.argtypes = [c_void_p, c_int32, POINTER(_Reply), c_void_p]
    kernel.parley_step.restype = c_int32
    kernel.parley_step.argtypes = [
        *(c_void_p, c_int32, integers, POINTER(_Reply), c_int32, c_void_p),
    ]
