"""A variant on disk: written, described, proven."""
