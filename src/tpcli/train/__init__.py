"""Training: ``build`` makes the parts, ``loop`` runs them, ``step`` learns from a batch."""
