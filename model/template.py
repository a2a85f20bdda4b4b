"""The chat template: how a conversation becomes text with control tokens.

``<|bos|>`` and then, for each message, the role's token, the content and ``<|end|>``. Both our own
encoder (``model.tokenizer``) and the jinja template below follow it and give the same ids.

What a person types can never become a control token. The template *escapes* contents: behind the
``<`` of every ``<|`` it puts the marker U+FDD0 (a Unicode noncharacter), so that no control token
is found in them; the tokenizer's normaliser takes the markers out again after control tokens have
been looked for. The content's ids are those of the text as typed, whoever renders the template.
"""

BOS = "<|bos|>"
END = "<|end|>"
PAD = "<|pad|>"
ROLE_TOKENS = {
    "system": "<|system|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
    "text": "<|text|>",
}
# In order of their ids, from 0.
CONTROL_TOKENS = (PAD, BOS, END, *ROLE_TOKENS.values())

MARKER = "\ufdd0"
# A marker that the text itself holds is doubled in kind first, so that unescaping is exact.
ESCAPES = ((MARKER, MARKER + "="), ("<|", "<" + MARKER + "|"))
UNESCAPES = ((MARKER + "|", "|"), (MARKER + "=", MARKER))


def escape(text: str) -> str:
    """``text`` with nothing in it that could be taken for a control token."""
    for plain, escaped in ESCAPES:
        text = text.replace(plain, escaped)
    return text


def _chat_template() -> str:
    filters = "".join(f" | replace({plain!r}, {escaped!r})" for plain, escaped in ESCAPES)
    roles = "{" + ", ".join(f"'{role}': '{token}'" for role, token in ROLE_TOKENS.items()) + "}"
    return (
        f"{{%- set roles = {roles} -%}}"
        f"{{{{- '{BOS}' -}}}}"
        "{%- for message in messages -%}"
        "{%- if message['role'] not in roles -%}"
        "{{- raise_exception('unknown role ' + message['role']) -}}"
        "{%- endif -%}"
        f"{{{{- roles[message['role']] + (message['content']{filters}) + '{END}' -}}}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        f"{{{{- '{ROLE_TOKENS['assistant']}' -}}}}"
        "{%- endif -%}"
    )


CHAT_TEMPLATE = _chat_template()
