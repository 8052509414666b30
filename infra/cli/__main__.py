"""`python -m infra.cli`: the command line without its installed script, as the supervisor starts its roles."""

from infra.cli.app import main

if __name__ == "__main__":
    main()
