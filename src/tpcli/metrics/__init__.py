"""Numbers of a run: ``stats`` computes them, the others carry them somewhere."""
