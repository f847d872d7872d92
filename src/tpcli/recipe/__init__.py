"""Recipes: what they may say (schema), how they are read (load), where they are wrong (faults)."""
