"""`eft generate`: a file of requests, answered without a server."""
