"""Searches for the experts that cause a behaviour, by editing every candidate and measuring what it changes."""
