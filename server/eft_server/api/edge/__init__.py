"""Between the socket and the routes: connections, keys, limits, JSON and errors."""
