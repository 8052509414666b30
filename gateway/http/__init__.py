"""Mechanics of the gateway: routing, identity, lists, problems, OpenAPI."""
