"""From a source's samples to preference pairs: hallucinated answers, lesion noise, clinical relevance and weights."""
