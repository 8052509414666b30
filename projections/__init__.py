"""What is known: frozen state, its fold, its tables and queries."""
