"""`metok inspect`: the events of a video and their relevance, without a server."""
