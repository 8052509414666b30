"""Faults on real processes, real Kafka and real Postgres."""
