"""What runs inside vLLM's processes: the one place that touches its internals."""
