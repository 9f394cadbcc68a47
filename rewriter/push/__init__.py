"""A variant published on the HF Hub: what it holds, what moves, its card, and the commit."""
