"""Scheduler, block managers and worker tables driven by random requests, without a model."""
