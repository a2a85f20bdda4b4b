"""What a person with experience would say of these settings before they run."""

from collections.abc import Iterator
from math import sqrt

from stages.plan.corpus import Data
from stages.plan.settings import Settings
from stages.plan.sizes import Parameters

TOKENS_PER_PARAMETER = 20  # compute-optimal: Hoffmann et al. 2022
FAR = 4  # a learning rate so many times above or below the rule's is far from it
USEFUL_EPOCHS = 4  # more passes over the same data bring little: Muennighoff et al. 2023
LARGEST_TABLE = 0.6  # share of the parameters: a rule of thumb
FEWEST_OCCURRENCES = 200  # of a token in the data, on average: a rule of thumb


def usual_lr(flops: float, tokens_per_step: int) -> float:
    """A peak learning rate for AdamW, from the work of the whole run.

    Bi et al. 2024 (DeepSeek LLM) fitted 0.3118 C^-0.125 at batches of 0.292 C^0.3271 tokens, for C
    of 1e17 to 3e20 FLOPs; other batches by the square root of their ratio (Malladi et al. 2022).
    Below that range it is extrapolated: the committed default, found by experiments at 4e13, is
    within a third of it.
    """
    batch = 0.292 * flops**0.3271
    return 0.3118 * flops**-0.125 * sqrt(tokens_per_step / batch)


def cautions(
    settings: Settings, data: Data, of: Parameters, steps: int, flops: float
) -> Iterator[str]:
    """One line for each; ``flops`` is the work of the whole run."""
    model, train = settings.model, settings.train
    tokens_per_step = train.sequences_per_step * model.seq_len
    tokens = steps * tokens_per_step
    windows = (data.train_tokens - 1) // model.seq_len
    per_parameter = tokens / of.total
    if per_parameter < TOKENS_PER_PARAMETER / 5:
        yield (
            f"little data for the model: {per_parameter:.1f} tokens a parameter, where "
            f"{TOKENS_PER_PARAMETER} are compute-optimal (Hoffmann et al. 2022): a smaller model, "
            "more epochs or more data would reach a lower loss for the same work"
        )
    epochs = tokens / data.train_tokens
    if epochs > USEFUL_EPOCHS + 0.1:
        yield (
            f"{epochs:.1f} epochs: beyond {USEFUL_EPOCHS} the same data brings little more "
            "(Muennighoff et al. 2023)"
        )
    tables = (of.embedding + of.head) / of.total
    if tables > LARGEST_TABLE:
        yield (
            f"vocabulary large for the model: {tables:.0%} of its parameters are in embedding and "
            "head: lower tokenizer.vocab_size, or widen the model"
        )
    occurrences = data.train_tokens / data.vocab_size
    if occurrences < FEWEST_OCCURRENCES:
        yield (
            f"vocabulary large for the data: a token occurs {occurrences:,.0f} times on "
            "average, and most of them far less: lower tokenizer.vocab_size"
        )
    usual = usual_lr(flops, tokens_per_step)
    if train.optimizer == "adamw" and not usual / FAR <= train.lr <= usual * FAR:
        yield (
            f"train.lr {train.lr:g} is far from {usual:.1e}, which a run of this size and batch "
            "usually wants (Bi et al. 2024, by the square root of the batch; a rule, not a law)"
        )
    if data.cut is not None and data.cut > 0.5:
        yield (
            f"{data.cut:.0%} of the conversations are longer than model.seq_len {model.seq_len:,}: "
            "the model never sees them whole"
        )
    if train.warmup_steps >= steps:
        yield f"train.warmup_steps {train.warmup_steps:,}: all {steps:,} steps are warm-up"
    if train.eval_interval > steps:
        yield (
            f"train.eval_interval {train.eval_interval:,} is never reached in {steps:,} steps: "
            "the first and the last validation are the only ones"
        )
    if train.sequences_per_step > windows:
        yield (
            f"an update of {train.sequences_per_step:,} sequences is more than an epoch, which "
            f"has {windows:,}: lower train.batch_size or train.grad_accum_steps"
        )
