"""Recordings that other recorders made, as trace folders or, where only sums are left, as class totals."""
