"""The optimiser and its learning rate, from flat arguments."""
