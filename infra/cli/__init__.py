"""The command line `ap`: one file per group of commands."""
