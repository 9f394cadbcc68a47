"""The whole of the method in one engine load: records, labels, finds, refines, checks, writes the variant."""
