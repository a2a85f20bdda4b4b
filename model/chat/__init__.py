"""A chat in the terminal: ``python -m model.chat`` (README.md, section "Chat")."""
