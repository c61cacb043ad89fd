"""Models on disk, and masks of any picture."""
