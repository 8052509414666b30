"""Settings, embedded services and the command line."""
