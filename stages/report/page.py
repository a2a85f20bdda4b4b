"""The report as a page of Markdown: a function of its inputs alone."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from model.config import DRAWN
from model.sources import SOURCES
from stages.markdown import code, inline, named
from stages.report.chart import bar, line_chart
from stages.report.inputs import Inputs, Rows

HISTORY_ROWS = 8
_BARE_BAR = re.compile(r"(?<!\\)\|")
BASELINES = {
    "uniform": "any token, all alike",
    "unigram": "how frequent a token is",
    "bigram": "what follows the token before",
    "bzip2": "a compressor that sees this text alone",
}


def write_report(found: Inputs, params: dict[str, Any]) -> str:
    """All sections, one after another."""
    sections = (
        _head(found, params),
        _data(found, params),
        _training(found),
        _baselines(found),
        _where(found),
        _calibration(found),
        _replies(found),
        _contamination(found),
        _samples(found),
        _params(params),
    )
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: int = 1) -> list[str]:
    """A table of Markdown; the columns from ``numbers`` on are set to the right."""
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|" + "|".join("---:" if i >= numbers else "---" for i in range(len(head))) + "|")
    for row in rows:
        lines.append("| " + " | ".join(map(shown, row)) + " |")
    return lines


def shown(value: object) -> str:
    """A value in a cell: thousands set apart, what is missing a dash. Text is Markdown."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return _BARE_BAR.sub(r"\\|", str(value))


def scaled(value: float, units: Sequence[str] = ("", "thousand", "million", "billion")) -> str:
    """A large number in words, to three digits."""
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value /= 1000
        power += 1
    return f"{value:.3g} {units[power]}".strip()


def percent(value: float | None) -> str | None:
    """A share of one in percent."""
    return None if value is None else f"{100 * value:.3g}%"


def _name(found: Inputs, params: dict[str, Any]) -> str:
    name = str(found.data["source"]["name"])
    if name in SOURCES:
        return SOURCES[name].title
    return inline(Path(params["data"]["path"]).name if name == "local" else name)


def _beginning(params: dict[str, Any]) -> str:
    """What training began with, in words."""
    init_from = str(params["train"]["init_from"])
    if init_from == DRAWN:
        return "Trained from scratch"
    return f"Trained further from the weights of {code(Path(init_from).name)}"


def _head(found: Inputs, params: dict[str, Any]) -> Iterator[str]:
    measured, train = found.evaluation, found.train
    bigram = measured["baselines"]["bigram"]["bits_per_byte"]
    better = 1 - measured["bits_per_byte"] / bigram
    yield f"# A chat model of {scaled(train['parameters'])} parameters"
    yield ""
    yield (
        f"{_beginning(params)} on {_name(found, params)}, {train['steps']:,} steps of "
        f"{train['tokens'] // max(1, train['steps']):,} tokens. On conversations that it has not "
        f"seen it needs **{measured['bits_per_byte']} bits per byte**, "
        f"{abs(100 * better):.1f}% {'fewer' if better >= 0 else 'more'} than a bigram model."
    )
    yield ""
    assistant = measured.get("assistant", {})
    yield from table(
        ("", "all messages", "the assistant's"),
        (
            ("bits per byte", measured["bits_per_byte"], assistant.get("bits_per_byte")),
            ("loss, nats a token", measured["loss"], assistant.get("loss")),
            ("perplexity", measured["perplexity"], assistant.get("perplexity")),
            ("tokens", measured["tokens"], assistant.get("tokens")),
            ("bytes of text", measured["bytes"], assistant.get("bytes")),
        ),
    )
    yield ""
    yield from table(
        ("cost", ""),
        (
            ("parameters", train["parameters"]),
            ("tokens trained on", train["tokens"]),
            ("compute", f"{train['flops']:.3g} FLOPs"),
            ("tokens a parameter", f"{train['tokens'] / train['parameters']:.3g}"),
            ("weights, sha256", f"`{found.weights_sha256}`"),
        ),
    )


def _data(found: Inputs, params: dict[str, Any]) -> Iterator[str]:
    source, rows = found.data["source"], found.data["rows"]
    known = SOURCES.get(source["name"])
    yield "## Data"
    yield ""
    yield from table(
        ("", ""),
        (
            ("source", f"[{known.title}]({known.url})" if known else _name(found, params)),
            *((key, code(str(value))) for key, value in source.items() if key != "name"),
            ("licence", known.licence_title if known else "not known: see the source"),
            *(
                [("languages", ", ".join(f"{inline(k)} {v:,}" for k, v in languages.items()))]
                if (languages := found.data.get("languages"))
                else []
            ),
            ("rows read", rows["read"]),
            ("conversations kept", rows["kept"]),
            *((f"dropped: {k.replace('_', ' ')}", n) for k, n in rows["dropped"].items()),
            ("malformed", rows["malformed"]),
            ("messages a conversation", f"median {found.data['turns']['median']:,}"),
            ("vocabulary", found.tokenizer["vocab_size"]),
            ("bytes a token", found.tokenizer["bytes_per_token"]),
        ),
        numbers=2,
    )
    yield ""
    splits = found.conversations["splits"]
    yield from table(
        ("split", "conversations", "messages", "bytes", "tokens", "sha256"),
        (
            (
                split,
                found.data[split]["conversations"],
                found.data[split]["messages"],
                found.shards[split]["bytes"],
                found.shards[split]["tokens"],
                f"`{splits[split]['sha256'][:16]}…`",
            )
            for split in ("train", "validation")
        ),
    )
    yield ""
    yield (
        "A conversation's split follows from a hash of its text: none stands on both sides, and it "
        "stays where it is when others come or go."
    )


def _training(found: Inputs) -> Iterator[str]:
    history = found.tables["history"]
    yield "## Training"
    yield ""
    if history:
        lines = line_chart(
            {
                "·": [(float(row["step"]), float(row["train_loss"])) for row in history],
                "●": [(float(row["step"]), float(row["val_loss"])) for row in history],
            },
            "step",
        )
        yield "Loss in nats a token: `●` validation, `·` training (mean since the point before)."
        yield ""
        yield "```text"
        yield from lines
        yield "```"
        yield ""
        every = -(-len(history) // HISTORY_ROWS)
        chosen = history[::-1][::every][::-1]
        yield from table(
            ("step", "tokens", "training loss", "validation loss", "learning rate"),
            (
                (
                    int(row["step"]),
                    int(row["tokens"]),
                    row["train_loss"],
                    row["val_loss"],
                    row["lr"],
                )
                for row in chosen
            ),
            numbers=0,
        )
        yield ""
    train = found.train
    yield (
        f"Validation loss began at {train['initial_val_loss']} and was best, "
        f"{train['best_val_loss']}, after step {train['best_step']:,}: those weights are the "
        f"model. {_skipped(train['skipped_steps'])}"
    )


def _skipped(count: int) -> str:
    if not count:
        return "No update was skipped."
    return f"{count:,} updates were skipped, as their loss or gradient was not finite."


def _baselines(found: Inputs) -> Iterator[str]:
    measured = found.evaluation
    rows = [
        (name, what, measured["baselines"][name]["bits_per_byte"])
        for name, what in BASELINES.items()
        if name in measured["baselines"]
    ]
    rows.append(("**this model**", "", measured["bits_per_byte"]))
    rows.sort(key=lambda row: -row[2])
    most = rows[0][2]
    yield "## Beside baselines"
    yield ""
    yield from _columns(
        ("", "knows", "bits per byte", ""),
        ((name, what, value, bar(value, most)) for name, what, value in rows),
        "--r-",
    )
    yield ""
    yield (
        "Bits per byte are of the text's own bytes, so models with other vocabularies compare, as "
        "long as the validation set is the same: "
        f"`validation_sha256` {measured['validation_sha256'][:16]}…"
    )


def _columns(head: Sequence[str], rows: Iterable[Sequence[object]], align: str) -> Iterator[str]:
    """A table whose columns are set to the left (``-``) or right (``r``)."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join("---:" if kind == "r" else "---" for kind in align) + "|"
    for row in rows:
        yield "| " + " | ".join(value if value == "" else shown(value) for value in row) + " |"


def _where(found: Inputs) -> Iterator[str]:
    yield "## Where the loss is"
    yield ""
    yield "By part of a conversation:"
    yield ""
    yield from _losses(
        found.tables["roles"], "part", [row["part"] for row in found.tables["roles"]]
    )
    yield ""
    yield "By the number of tokens that the model saw before:"
    yield ""
    context = found.tables["context"]
    names, before = [], 0
    for row in context:
        last = int(row["context"])
        names.append(f"{last:,}" if last - before <= 1 else f"{last // 2 + 1:,} to {last:,}")
        before = last
    yield from _losses(context, "context", names)
    yield ""
    yield "By the message's place in its conversation:"
    yield ""
    turns = found.tables["turns"]
    names = [
        f"{int(row['turn']):,}" if row["turn"] == row["to"] else f"{row['turn']} to {row['to']}"
        for row in turns
    ]
    yield from _losses(turns, "message", names)


def _losses(rows: Rows, head: str, names: Sequence[str]) -> Iterator[str]:
    # Nats a token move with which tokens stand where.
    drawn = "bits_per_byte" if all(row["bits_per_byte"] for row in rows) else "loss"
    most = max((float(row[drawn]) for row in rows), default=0.0)
    yield from _columns(
        (head, "tokens", "nats a token", "bits per byte", ""),
        (
            (
                name,
                int(row["tokens"]),
                row["loss"],
                row["bits_per_byte"] or None,
                bar(float(row[drawn]), most),
            )
            for row, name in zip(rows, names, strict=True)
        ),
        "-rrr-",
    )


def _calibration(found: Inputs) -> Iterator[str]:
    measured = found.evaluation
    yield "## Calibration"
    yield ""
    yield (
        f"The most probable token is right for {percent(measured['accuracy'])} of the tokens. "
        "The probability that the model gives it and the share in which it comes differ by "
        f"{100 * measured['calibration_error']:.3g} percentage points in the mean (expected "
        "calibration error)."
    )
    yield ""
    yield from _columns(
        ("said", "came true", "tokens", ""),
        (
            (
                percent(float(row["confidence"])),
                percent(float(row["accuracy"])),
                int(row["tokens"]),
                bar(float(row["accuracy"]), 1),
            )
            for row in found.tables["calibration"]
        ),
        "rrr-",
    )


def _replies(found: Inputs) -> Iterator[str]:
    rows = found.tables["replies"]
    yield "## Replies"
    yield ""
    if not rows:
        yield "The validation set has no reply to continue."
        return
    yield (
        f"Replies to {int(rows[0]['replies'])} conversations of the validation set, beside what "
        "was really said there. Repeated: share of the runs of four words that stood in the same "
        "reply before. Distinct: share of different words, and pairs of words, among all."
    )
    yield ""
    yield from table(
        (
            "",
            "words, mean",
            "median",
            "repeated",
            "distinct words",
            "distinct pairs",
            "ended by itself",
        ),
        (
            (
                {"data": "what was said"}.get(row["who"], row["who"]),
                row["mean_words"],
                row["median_words"],
                *(
                    percent(float(row[key])) if row[key] else None
                    for key in ("repetition", "distinct_1", "distinct_2", "ended")
                ),
            )
            for row in rows
        ),
    )


def _contamination(found: Inputs) -> Iterator[str]:
    overlap = found.evaluation["contamination"]
    yield "## Contamination"
    yield ""
    if overlap["ngrams"] is None:
        yield "No conversation of the validation set is long enough to look for."
        return
    yield (
        f"{percent(overlap['ngrams'])} of the validation set's substrings of 50 letters and digits "
        f"stand in the training set too, and {percent(overlap['conversations'])} of its "
        "conversations hold one. Without those conversations the model needs "
        f"{shown(overlap['clean_bits_per_byte'])} bits per byte."
    )


def _samples(found: Inputs) -> Iterator[str]:
    for line in found.samples.rstrip("\n").splitlines():
        yield f"#{line}" if line.startswith("#") else line


def _params(params: dict[str, Any]) -> Iterator[str]:
    values = {
        key: dict(value) if isinstance(value, dict) else value for key, value in params.items()
    }
    # A card goes out into the world, where the folders of this machine mean nothing.
    for section, key in (("data", "path"), ("tokenizer", "path"), ("train", "init_from")):
        path = Path(str(values[section][key]))
        if path.is_absolute():
            values[section][key] = path.name
    yield "## Parameters"
    yield ""
    yield "```yaml"
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None)
    yield from (named(line) for line in text.rstrip("\n").split("\n"))
    yield "```"
