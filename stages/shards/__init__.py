"""Room of the shards stage: conversations and a tokenizer become flat arrays of token ids."""
