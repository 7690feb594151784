"""Clients of a server under test: requests, videos, streams, metrics."""
