"""Figures and tables, from what runs left behind."""
