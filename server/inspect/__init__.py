"""The events of a video and why, without a server."""
