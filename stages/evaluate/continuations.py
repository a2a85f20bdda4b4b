"""Replies to real conversations in numbers enough to measure: the model's and the people's."""

import torch

from model.generate import generate_ids
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from stages.corpus import TokenStream
from stages.evaluate.breakdown import Row
from stages.evaluate.params import EvaluateParams
from stages.evaluate.replies import describe
from stages.evaluate.samples import openings

CONTINUED = 32  # conversations of the validation set, fewer where it has fewer


def continue_openings(
    model: Transformer, tokenizer: ChatTokenizer, validation: TokenStream, params: EvaluateParams
) -> list[Row]:
    """One row each for greedy and sampled replies and for what was said; none without openings."""
    wanted = params.model_copy(update={"openings": CONTINUED})
    places = list(openings(validation, tokenizer, model.config.seq_len, wanted))
    if not places:
        return []
    rows = []
    for name, temperature in (("greedy", 0.0), ("sampled", params.temperature)):
        texts, ended = [], 0
        for number, (ids, _) in enumerate(places):
            limit = min(params.max_new_tokens, model.config.seq_len - len(ids))
            generator = torch.Generator().manual_seed(params.seed + number)
            reply = list(
                generate_ids(
                    model, ids, limit, temperature, None, params.top_p, generator,
                    (tokenizer.end_id,),
                )
            )  # fmt: skip
            texts.append(tokenizer.decode(reply))
            ended += len(reply) < limit
        rows.append({"who": name, **describe(texts, ended / len(places))})
    said = [tokenizer.decode(actual) for _, actual in places]
    rows.append({"who": "data", **describe(said, 1.0)})
    return rows
