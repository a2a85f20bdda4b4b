"""Byte-level BPE with the chat template: text and conversations to token ids and back."""

import hashlib
import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from model.template import (
    BOS,
    CHAT_TEMPLATE,
    CONTROL_TOKENS,
    END,
    PAD,
    ROLE_TOKENS,
    UNESCAPES,
    escape,
)

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SMALLEST_VOCAB = len(CONTROL_TOKENS) + 256
# Learning merges takes time by the square of the longest word, and a run of white space is a word
# too. (Encoding is linear.)
LONGEST_RUN = 1_000
_LONG_RUN = re.compile(rf"\S{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}}")


class ChatTokenizer:
    """A byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019) and its template.

    ``decode(encode(text)) == text`` for any text that UTF-8 can hold. ``encode`` never gives a
    control token; only ``encode_chat`` does.
    """

    def __init__(self, backend: Tokenizer, sha256: str | None = None) -> None:
        """Wraps ``backend``. Raises ValueError when it lacks a control token."""
        missing = [token for token in CONTROL_TOKENS if backend.token_to_id(token) is None]
        if missing:
            raise ValueError(f"the tokenizer has no control token {missing[0]}: it is not Parley's")
        # A second guard beside the template's escapes; `tokenizers` does not save this flag.
        backend.encode_special_tokens = True
        self.backend = backend
        self.sha256 = sha256 or hashlib.sha256(_json(backend).encode()).hexdigest()
        ids = {token: int(backend.token_to_id(token) or 0) for token in CONTROL_TOKENS}
        self.bos_id, self.end_id, self.pad_id = ids[BOS], ids[END], ids[PAD]
        self.role_ids = {role: ids[token] for role, token in ROLE_TOKENS.items()}
        self._control_ids = frozenset(ids.values())

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Raises ValueError for text that is not Unicode (lone surrogates)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, encoded on all cores. Raises ValueError as ``encode``."""
        try:
            encodings = self.backend.encode_batch_fast(
                [escape(text) for text in texts], add_special_tokens=False
            )
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError(f"text can't be encoded: {error}") from None
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], control: bool = False) -> str:
        """Text of ``ids``; control tokens are left out unless ``control`` is set."""
        return str(self.backend.decode(list(ids), skip_special_tokens=not control))

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> list[int]:
        """Ids of a conversation in the template.

        With ``add_generation_prompt`` the assistant's role token follows, ready for a reply.
        Raises ValueError for a message without a known role and a text, and for text that is not
        Unicode.
        """
        ids = self.encode_chats([messages])[0]
        if add_generation_prompt:
            ids.append(self.role_ids["assistant"])
        return ids

    def encode_chats(self, chats: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[int]]:
        """Ids of several conversations: the one place that renders the template as ids.

        Raises ValueError as ``encode_chat``.
        """
        for message in (message for messages in chats for message in messages):
            self._check(message)
        contents = iter(self.encode_batch([m["content"] for messages in chats for m in messages]))
        rendered = []
        for messages in chats:
            ids = [self.bos_id]
            for message in messages:
                ids.append(self.role_ids[message["role"]])
                ids += next(contents)
                ids.append(self.end_id)
            rendered.append(ids)
        return rendered

    def _check(self, message: object) -> None:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(
                f"a message must be {{'role': …, 'content': text}}, not {reprlib.repr(message)}"
            )
        if message["role"] not in self.role_ids:
            raise ValueError(
                f"unknown role '{message['role']}': use one of {', '.join(self.role_ids)}"
            )

    def is_control(self, token: int) -> bool:
        """Whether ``token`` is one of the control tokens."""
        return token in self._control_ids

    @classmethod
    def train(cls, texts: Iterator[str], vocab_size: int) -> "ChatTokenizer":
        """Learns merges from ``texts`` until the vocabulary has ``vocab_size`` ids.

        A small corpus may give fewer. Runs of more than LONGEST_RUN characters without white space
        (or of it) are learnt from in pieces; they are encoded whole. Raises ValueError when the
        control tokens and the 256 bytes alone are more than ``vocab_size``.
        """
        if vocab_size < SMALLEST_VOCAB:
            raise ValueError(f"vocab_size {vocab_size} is below {SMALLEST_VOCAB}")
        backend = Tokenizer(models.BPE())
        backend.normalizer = unescaping()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        control = [AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=control,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        # Encoded as they will be later: the training must not see the escapes either.
        pieces = (escape(piece) for text in texts for piece in _pieces(text))
        backend.train_from_iterator(pieces, trainer)
        return cls(backend)

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face tokenizer folder: tokenizer.json and tokenizer_config.json."""
        content = _json(self.backend)
        (folder / TOKENIZER_FILE).write_bytes(content.encode())
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": END,
            "pad_token": PAD,
            "additional_special_tokens": list(ROLE_TOKENS.values()),
            "clean_up_tokenization_spaces": False,
            # In a batch a decoder goes on from the end of each prompt.
            "padding_side": "left",
            "chat_template": CHAT_TEMPLATE,
        }
        text = json.dumps(config, indent=2, ensure_ascii=True) + "\n"
        (folder / TOKENIZER_CONFIG_FILE).write_bytes(text.encode())

    @classmethod
    def load(cls, folder: str | Path) -> "ChatTokenizer":
        """Opens a folder that ``save`` wrote (or a model folder).

        Raises FileNotFoundError without a tokenizer.json, ValueError for a foreign one.
        """
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {TOKENIZER_FILE} in '{folder}'")
        content = path.read_bytes()
        try:
            backend = Tokenizer.from_buffer(content)
        except Exception as error:  # `tokenizers` raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}") from None
        return cls(backend, hashlib.sha256(content).hexdigest())


def unescaping() -> normalizers.Normalizer:
    """The normaliser that takes the template's escapes out again."""
    return normalizers.Sequence(
        [normalizers.Replace(escaped, plain) for escaped, plain in UNESCAPES]
    )


def _pieces(text: str) -> Iterator[str]:
    """``text``, cut within its long runs."""
    start = 0
    if len(text) > LONGEST_RUN:
        for run in _LONG_RUN.finditer(text):
            yield text[start : run.end()]
            start = run.end()
    yield text[start:]


def _json(backend: Tokenizer) -> str:
    return str(backend.to_str(pretty=True))
