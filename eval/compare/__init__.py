"""Several evaluations on one page: what each variant moves, and how far from the base that takes it."""
