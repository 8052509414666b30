"""The log read again: rebuild, replay, export, verify."""
