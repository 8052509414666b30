"""Chaos: real processes under load, faults injected from a seed, then a judge of what became of every run."""
