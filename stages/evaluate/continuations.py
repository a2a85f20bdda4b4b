"""Replies to real conversations in numbers enough to measure: the model's and the people's."""

from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from stages.corpus import TokenStream
from stages.evaluate.breakdown import Row
from stages.evaluate.params import EvaluateParams
from stages.evaluate.replies import describe
from stages.evaluate.samples import both_replies, make_engine, openings

CONTINUED = 32  # conversations of the validation set, fewer where it has fewer


def continue_openings(
    model: Transformer, tokenizer: ChatTokenizer, validation: TokenStream, params: EvaluateParams
) -> list[Row]:
    """One row each for greedy and sampled replies and for what was said; none without openings."""
    wanted = params.model_copy(update={"openings": CONTINUED})
    places = list(openings(validation, tokenizer, model.config.seq_len, wanted))
    if not places:
        return []
    pairs = both_replies(make_engine(model, tokenizer), [ids for ids, _ in places], params)
    replies = [pair for pair in pairs if pair is not None]  # openings always leave room
    rows = []
    for kind, name in enumerate(("greedy", "sampled")):
        made = [pair[kind] for pair in replies]
        ended = sum(reply.finish == "stop" for reply in made) / len(made)
        rows.append({"who": name, **describe([reply.text for reply in made], ended)})
    said = [tokenizer.decode(actual) for _, actual in places]
    rows.append({"who": "data", **describe(said, 1.0)})
    return rows
