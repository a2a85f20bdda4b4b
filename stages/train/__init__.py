"""Room of the training stage: token shards become a model folder and a history.

How a batch becomes an update: ``data_order`` says which windows of the token stream step k reads
and ``prefetch`` reads them ahead; ``update`` runs forward and backward passes, clips, and lets the
optimisers step; ``loop`` does so until the end and validates on the way. ``engine`` puts together
what computes, as the settings say:

* ``loss``: the network and its loss, a piece of the vocabulary's logits at a time
* ``optimizer``, ``schedule``: the tables to extend
* ``precision``, ``master``: dtypes; ``checkpointing``: memory; ``compiling``, ``attention``: speed
* ``processes``, ``launch``: several processes of one training

An unfinished training is kept by ``checkpoints`` (when), ``saves`` (what) and ``fingerprint``
(for whom). ``meter`` watches. Commands: ``fit`` (the largest pass that memory
holds), ``batch`` (what an update read).
"""
