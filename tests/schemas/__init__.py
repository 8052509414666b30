"""The wire contract and the workflow language."""
