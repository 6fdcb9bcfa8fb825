"""What the command lines in experiments/ call."""
