"""Runs: attempts, plans, edges, evaluation."""
