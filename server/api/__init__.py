"""METok on vLLM's HTTP server: routes, request and response fields, errors, limits, lifecycle."""
