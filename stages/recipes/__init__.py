"""Named sets of overrides, each applied and run by one command: ``python -m stages.recipes``."""
