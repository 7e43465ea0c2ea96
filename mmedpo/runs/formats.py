"""Format names in recorded files, which readers check, and the prefix of stand-ins."""

RESULTS = "mmedpo.results/1"
COMPARISON = "mmedpo.comparison/2"
ATTENTION = "mmedpo.attention/1"

STANDIN = "standin:"  # prefix of the name of a stand-in for a model: offline rules, a tiny model
STANDIN_KEY = "standin"  # in a tiny model's config.json: its name as a stand-in
