"""Code for the scheduler's process."""
