"""Review of preference pairs by clinicians: a page in the browser, their verdicts, and what the verdicts change."""
