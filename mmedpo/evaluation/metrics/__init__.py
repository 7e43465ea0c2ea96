"""Metric definitions: Med-VQA, report generation, preference and visual reliance."""
