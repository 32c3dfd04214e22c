"""How we ask: keys, tokens, prices, limits, retries, the client, the runner and the command line."""
