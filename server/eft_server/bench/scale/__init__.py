"""A simulation of several replicas behind a router: what prefix caches, weights and routing do to latency."""
