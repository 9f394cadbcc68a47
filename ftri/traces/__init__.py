"""Recorded routing: read, written, merged."""
