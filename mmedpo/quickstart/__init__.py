"""Quickstart: phantom corpus, tiny model and a demonstration of all commands on them."""
