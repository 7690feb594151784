"""Quality: what settings do to the answers, against dense, through the real server."""
