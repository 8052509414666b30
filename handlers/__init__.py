"""Pure decisions, one file per domain."""
