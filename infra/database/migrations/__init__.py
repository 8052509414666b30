"""Migrations of the database, by Alembic, under an advisory lock."""
