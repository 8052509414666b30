"""The kernel's own promises, shown on a domain made for that."""
