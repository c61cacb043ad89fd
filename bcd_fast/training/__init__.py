"""Stage 2: batches, loss, callbacks, learner, and what goes on around a training."""
