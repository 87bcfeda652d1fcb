"""Training: losses, the stream of batches, the moving average of the weights, resumable state."""
