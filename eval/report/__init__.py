"""Results for people: page, card, table, transcripts."""
