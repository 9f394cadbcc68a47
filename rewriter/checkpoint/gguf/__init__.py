"""A GGUF file or a set of split files read lazily: metadata, tensor infos, and where each tensor's bytes lie."""
