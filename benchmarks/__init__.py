"""Benchmarks behind the numbers in the documentation, each a command."""
