"""Use cases: what a command does, without the typing before and the printing after it."""
