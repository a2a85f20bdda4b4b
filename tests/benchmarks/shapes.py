"""What is trained: three shapes, and how long each is measured."""

from dataclasses import dataclass

from model.config import ModelConfig


@dataclass(frozen=True)
class Shape:
    """A decoder in Llama's form, and the sequences of one step."""

    d_model: int
    num_layers: int
    num_heads: int
    kv_heads: int
    d_ff: int
    vocab_size: int
    seq_len: int
    batch_size: int
    steps: int  # that a run counts, unless it is told otherwise

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch_size * self.seq_len

    def config(self) -> ModelConfig:
        """Parley's config of this shape."""
        return ModelConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            kv_heads=self.kv_heads,
            d_ff=self.d_ff,
            seq_len=self.seq_len,
        )

    def __str__(self) -> str:
        return (
            f"width {self.d_model}, {self.num_layers} layers, {self.num_heads} heads "
            f"({self.kv_heads} kv), feed-forward {self.d_ff:,}, vocabulary {self.vocab_size:,}, "
            f"{self.batch_size} x {self.seq_len} tokens a step"
        )


SHAPES = {
    "S": Shape(128, 3, 2, 1, 384, 4096, 256, 32, steps=20),  # the default run's
    "M": Shape(384, 6, 6, 2, 1024, 8192, 256, 16, steps=10),
    "D": Shape(768, 10, 12, 4, 2048, 32000, 512, 4, steps=5),  # the full run's
}
