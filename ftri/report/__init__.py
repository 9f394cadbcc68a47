"""Findings as a page and as figures."""
