"""Benchmarks of the product as it runs: whole commands, the web process, workers and a real Label Studio."""
