"""What is known of data sets that models are trained on: where they are, licence and language.

A set that is not here is said to be unknown; nothing is guessed. Licences are named as the hub
names them, so that a model card can say them; ``other`` is an agreement of the set's own.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A public data set."""

    title: str
    url: str
    licence: str
    licence_title: str
    language: str | None


SOURCES = {
    "chitchat": Source(
        "BYU chit-chat dataset",
        "https://pypi.org/project/chitchat-dataset/",
        "mit",
        "MIT",
        "en",
    ),
    "lmsys/lmsys-chat-1m": Source(
        "LMSYS-Chat-1M",
        "https://huggingface.co/datasets/lmsys/lmsys-chat-1m",
        "other",
        "LMSYS-Chat-1M Dataset License Agreement",
        None,
    ),
    "tatsu-lab/alpaca": Source(
        "Alpaca",
        "https://huggingface.co/datasets/tatsu-lab/alpaca",
        "cc-by-nc-4.0",
        "CC BY-NC 4.0",
        "en",
    ),
    "databricks/databricks-dolly-15k": Source(
        "Dolly 15k",
        "https://huggingface.co/datasets/databricks/databricks-dolly-15k",
        "cc-by-sa-3.0",
        "CC BY-SA 3.0",
        "en",
    ),
    "OpenAssistant/oasst1": Source(
        "OpenAssistant Conversations",
        "https://huggingface.co/datasets/OpenAssistant/oasst1",
        "apache-2.0",
        "Apache 2.0",
        None,
    ),
}
