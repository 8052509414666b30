"""Telemetry: metrics for Prometheus, traces for OpenTelemetry, and who serves them."""
