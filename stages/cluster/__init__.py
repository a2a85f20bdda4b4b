"""The download and shards stages in slices, on the cores of one machine or on many machines."""
