"""What one trial does: the task itself, and its adapter to Ray Tune."""
