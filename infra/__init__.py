"""Everything that is not the domain: composition, settings, database, servers, command line."""
