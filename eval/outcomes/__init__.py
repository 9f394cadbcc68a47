"""What became of answers: labels, damage, the counted change, held-out prompts, and the statistics of them."""
