"""Whole runs: settings, experiments by name, scores, reports, results."""
