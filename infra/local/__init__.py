"""A whole installation on this machine: supervisor, embedded servers, demo."""
