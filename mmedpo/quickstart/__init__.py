"""Phantom corpus, tiny model and the demonstration on them."""
