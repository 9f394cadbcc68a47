"""Measures what a variant does: transitions between behaviours, against chance, and what else changed."""
