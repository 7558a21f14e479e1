"""Parts of the benchmarks: shapes, networks, timing, checks, tables."""
