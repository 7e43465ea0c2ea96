"""Names of the formats of recorded files, which their readers check and refuse others by."""

RESULTS = "mmedpo.results/1"
COMPARISON = "mmedpo.comparison/2"
ATTENTION = "mmedpo.attention/1"

STANDIN = "standin:"  # begins the name of what stands in for a model: offline rules, a tiny model
STANDIN_KEY = "standin"  # of a tiny model's config.json: its name as a stand-in
