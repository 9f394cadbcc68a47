"""From traces to findings."""
