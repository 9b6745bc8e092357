"""From the records of a load test to its figures."""
