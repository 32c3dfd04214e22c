"""`python -m engine` is `distill`."""

from engine.cli import main

main()
