"""`python -m mmedpo.cli`, which `accelerate launch -m mmedpo.cli` runs in each process."""

from mmedpo.cli import main

main()
