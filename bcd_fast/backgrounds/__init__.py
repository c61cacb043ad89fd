"""Stage 1: encoders of backgrounds, clusters, the cluster of every image."""
