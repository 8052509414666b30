"""Rows that make sending and receiving exact: outbox, inbox, timers, outcomes."""
