"""The other installed commands: check, predict, export, bench, figures."""
