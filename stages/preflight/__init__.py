"""Between shards and training: the settings fit the data, before DVC removes the last model."""
