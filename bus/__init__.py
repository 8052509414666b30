"""The kernel: lanes, batches in one transaction, producing, replay, dead letters."""
