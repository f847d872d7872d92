"""Models: where weights come from, how rows are packed, what tokens score."""
