"""Experiments of several commands: chains that can be interrupted, rounds of training, tables of methods."""
