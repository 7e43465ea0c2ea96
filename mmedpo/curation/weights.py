"""Public name of `mmedpo.data.weights`: clinical relevance scores to weights."""

from mmedpo.data.weights import METHODS, OVER, Normalization, normalize

__all__ = ["METHODS", "OVER", "Normalization", "normalize"]
