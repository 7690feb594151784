"""Event-QA: seeded videos made of events, with their truth, and questions about them."""
