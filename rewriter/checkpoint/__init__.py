"""A model folder read lazily: config, index, shard headers, and where each tensor lies."""
