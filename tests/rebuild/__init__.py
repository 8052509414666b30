"""Folding the log anew: in memory, and against real tables."""
