"""What a token costs to train on."""

from model.config import ModelConfig


def flops_per_token(config: ModelConfig) -> float:
    """FLOPs of forward and backward for a token, as PaLM counts them (Chowdhery et al. 2022).

    Six for each weight of a matrix that multiplies (the head's once, whether tied or not), and
    attention over the whole sequence; what checkpointing computes twice is not counted.
    """
    matrices = config.num_parameters() - (2 * config.num_layers + 1) * config.d_model
    if config.qk_norm:
        matrices -= 2 * config.num_layers * config.head_dim
    if not config.tie_embeddings:  # the embedding is looked up; a tied one multiplies as the head
        matrices -= config.vocab_size * config.d_model
    scores = config.num_layers * config.num_heads * config.head_dim * config.seq_len
    return 6.0 * matrices + 12.0 * scores
