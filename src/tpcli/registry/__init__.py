"""What is remembered: the run folders, and an index over them in runs/registry.db.

``folder`` names the files of a run and reads them; ``store.Registry`` indexes and finds runs.
Nothing is imported here: SQLAlchemy is slow to load, and ``folder`` does not need it.
"""
