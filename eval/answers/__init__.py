"""What is asked of whom, asked once, and kept."""
