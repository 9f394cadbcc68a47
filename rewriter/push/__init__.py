"""A variant, published on the HF Hub."""
