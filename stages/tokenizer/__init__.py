"""Room of the tokenizer stage: the training split's text becomes a byte-level BPE."""
