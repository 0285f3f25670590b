"""`python -m scan2twin`: the command line, where the `scan2twin` script is not on the path."""

from scan2twin.cli.main import main

main()
