"""What an edit changes, worked out and recorded. Pure: nothing here writes."""
