"""Turn the samples of a source into preference pairs: rejected responses, lesion noise, relevance, weights."""
