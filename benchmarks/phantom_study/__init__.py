"""The study of clinical weighting (docs/study.md): a world with known relevance, judges, arms, trainings, analysis."""
