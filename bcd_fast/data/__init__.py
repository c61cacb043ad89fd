"""Images and data sets: read, normalised, made, put together."""
