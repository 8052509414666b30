"""Metrics, traces, and that telling them costs nobody his work."""
