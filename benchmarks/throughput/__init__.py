"""`metok bench`: throughput and latency of servers under load, with the agreement of answers."""
