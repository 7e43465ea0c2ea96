"""`python -m mmedpo`: the command line."""

from mmedpo.cli import main

main()
