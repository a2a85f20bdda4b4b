"""A small server for one machine: ``python -m model.serve`` (README.md, section "Server")."""
