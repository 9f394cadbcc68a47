"""What each model family calls things: one row a family, and the look-up of a row by a config."""
