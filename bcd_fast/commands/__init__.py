"""The other installed commands: check, predict, export, eval, bench, figures, import, review."""
