"""Worker, executor and gateway: each put together in one file."""
