"""Benchmarks: declared in ``sets/*.toml``, asked, graded, and summed up with honest intervals."""
