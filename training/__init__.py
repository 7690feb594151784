"""Training of the demo model on event-QA: towers first, then the decoder, always dense."""
