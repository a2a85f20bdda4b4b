"""Schemas of the sections ``seed``, ``model`` and ``train``."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from model.config import DRAWN, ModelConfig, check_heads
from stages.errors import SettingsError
from stages.params import Section, left_behind

FSDP_IN_FP16 = (
    "runtime.parallel: fsdp has no gradient scaler for fp16: use ddp, or train.mixed_precision bf16"
)

Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class ModelParams(Section):
    """Shape of the network."""

    d_model: Positive
    num_layers: Positive
    num_heads: Positive
    kv_heads: Positive
    d_ff: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    seq_len: Annotated[int, Field(ge=2)]
    rope_theta: Annotated[float, Field(ge=1, le=1e12)]
    qk_norm: bool
    tie_embeddings: bool

    @model_validator(mode="after")
    def _heads_fit(self) -> "ModelParams":
        check_heads(self.d_model, self.num_heads, self.kv_heads)
        return self

    def config(
        self, vocab_size: int, control_ids: dict[str, int], document_mask: bool = False
    ) -> ModelConfig:
        """The network's config for a tokenizer of ``vocab_size`` ids."""
        return ModelConfig(
            document_mask=document_mask,
            vocab_size=vocab_size,
            bos_id=control_ids["bos"],
            end_id=control_ids["end"],
            pad_id=control_ids["pad"],
            **self.model_dump(),
        )


class TrainParams(Section):
    """How the network is trained."""

    epochs: Annotated[float, Field(gt=0, le=1e6)]
    max_steps: Positive | None
    batch_size: Positive
    grad_accum_steps: Positive
    micro_batch_size: Positive | None
    optimizer: Literal["adamw", "muon"]
    lr: Annotated[float, Field(gt=0)]
    muon_lr: Annotated[float, Field(gt=0)]
    min_lr: Annotated[float, Field(ge=0)]
    warmup_steps: Count
    schedule: Literal["cosine", "linear", "wsd"]
    decay_fraction: Annotated[float, Field(gt=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0, le=100)]
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    grad_clip: Annotated[float, Field(ge=0)]
    mixed_precision: bool | Literal["bf16", "fp16"]
    bf16_weights: bool
    activation_checkpointing: Literal["none", "selective", "full"]
    compile: bool
    loss_on: Literal["all", "assistant"]
    document_mask: bool
    init_from: Annotated[str, Field(min_length=1)]
    eval_interval: Positive
    eval_tokens: Positive

    @field_validator("init_from")
    @classmethod
    def _start_exists(cls, value: str) -> str:
        if value != DRAWN and not Path(value).is_dir():
            hint = left_behind(Path(value)) or f": name a model folder, or {DRAWN}"
            raise ValueError(f"'{value}' is no folder{hint}")
        return value

    @model_validator(mode="after")
    def _rates_fit(self) -> "TrainParams":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: {self.min_lr} is above lr {self.lr}")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "TrainParams":
        if self.micro_batch_size is not None:
            parts, rest = divmod(self.batch_size, self.micro_batch_size)
            if rest or parts.bit_count() != 1:
                fitting = [size for i in range(32) if not (size := self.batch_size / 2**i) % 1]
                raise ValueError(
                    f"micro_batch_size: {self.micro_batch_size} is not batch_size "
                    f"{self.batch_size} halved some times: use one of "
                    + ", ".join(f"{size:.0f}" for size in fitting)
                )
        if self.bf16_weights and self.mixed_precision in (False, "fp16"):
            raise ValueError("bf16_weights: needs mixed_precision true or bf16")
        return self

    @property
    def rates(self) -> str:
        """The keys of the learning rates in use, in words."""
        return "train.lr and train.muon_lr" if self.optimizer == "muon" else "train.lr"

    @property
    def sequences_per_step(self) -> int:
        """Sequences in one update, of all processes together."""
        return self.batch_size * self.grad_accum_steps

    def sequences_per_process(self, processes: int) -> int:
        """Sequences of an update that each of ``processes`` reads. Raises SettingsError."""
        share, rest = divmod(self.sequences_per_step, processes)
        if rest:
            raise SettingsError(
                f"runtime.processes: {processes} processes can't share the "
                f"{self.sequences_per_step} sequences of an update evenly (train.batch_size x "
                "train.grad_accum_steps): make one a multiple of the other"
            )
        return share

    def check_processes(self, processes: int, parallel: str) -> None:
        """Raises SettingsError when so many processes can't train this."""
        self.sequences_per_process(processes)
        if processes > 1 and parallel == "fsdp" and self.mixed_precision == "fp16":
            raise SettingsError(FSDP_IN_FP16)

    def sequences_per_pass(self, processes: int) -> int:
        """Sequences in one forward pass of one of ``processes``."""
        return min(self.micro_batch_size or self.batch_size, self.sequences_per_process(processes))
