"""The scheduler and the block managers driven without a model: random lives, exact books."""
