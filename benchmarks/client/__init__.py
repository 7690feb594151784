"""The client of a server under test: requests, videos, token streams, metrics, processes."""
