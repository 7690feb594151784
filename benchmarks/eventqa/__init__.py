"""Event-QA: seeded synthetic videos of known events, and questions about them."""
