"""Models and recipes, fetched from the HF Hub or found in its cache."""
