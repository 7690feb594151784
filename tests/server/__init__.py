"""Tests of the HTTP server, without an engine."""
