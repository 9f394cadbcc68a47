"""Mutated inputs for every parser: each must end in a value, or in one typed sentence, within a second and 200 MB."""
