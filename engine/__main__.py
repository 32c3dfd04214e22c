"""`python -m engine` is `distill`."""

from engine.cli.app import main

main()
