"""Dataset builders, cards and publications on the Hub."""
