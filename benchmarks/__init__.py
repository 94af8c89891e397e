"""Benchmarks: ratios measured side by side in one run, never from a timed test."""
