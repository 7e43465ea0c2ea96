"""Entry point of `python -m mmedpo.cli`, for `accelerate launch -m mmedpo.cli`."""

from mmedpo.cli import main

main()
