"""The pipeline: a room a stage, run as ``python -m stages.<name>``; modules here serve several."""
