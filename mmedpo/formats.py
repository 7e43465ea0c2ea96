"""Names of the formats of recorded files, which their readers check and refuse others by."""

RESULTS = "mmedpo.results/1"
COMPARISON = "mmedpo.comparison/2"
ATTENTION = "mmedpo.attention/1"

STANDIN = "standin:"  # begins the name of what is made by offline rules in place of a model
