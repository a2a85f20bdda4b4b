"""Benchmarks, each a command of its own: ``speed``, ``time_to_loss``, ``overhead`` (README.md).

``speed`` and ``time_to_loss`` measure in child processes: ``measure`` is one contender at one
shape, ``nanogpt_recipe`` and ``parley_recipe`` are one training each.
"""
