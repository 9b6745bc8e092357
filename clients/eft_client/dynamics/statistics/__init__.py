"""What follows from the measured numbers: curves with intervals, influence, squeezing, and which step to serve."""
