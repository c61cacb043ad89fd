"""Masks to labelling tools and back: corrected masks in a folder of pictures."""
