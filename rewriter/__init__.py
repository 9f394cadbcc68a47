"""Edits Mixture-of-Experts checkpoints: which experts the router may choose, decided in the files themselves."""

__version__ = "0.1.0"
