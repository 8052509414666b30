"""HTTP to commands and queries."""
