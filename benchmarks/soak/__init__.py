"""Thousands of requests that are wrong in some way, and of videos, against one server."""
