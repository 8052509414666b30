"""Tables, migrations, policies."""
