"""A soak test: thousands of malformed requests and of new videos against one server."""
