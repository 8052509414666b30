"""Reading topics and the log again, for files, topics and functions."""
