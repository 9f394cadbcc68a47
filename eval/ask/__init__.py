"""The page on which base and variant answer side by side; start reading at ask.py."""
