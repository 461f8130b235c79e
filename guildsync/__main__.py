"""`python -m guildsync` is the command line."""

from guildsync.cli.main import main

if __name__ == "__main__":
    main()
