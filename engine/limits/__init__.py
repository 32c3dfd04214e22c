"""When the next request may go, and where: rate limits, budget, concurrency, outages, endpoints."""
