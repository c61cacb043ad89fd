"""The network that makes masks, and the composites it is trained on."""
