"""Moving content between stores: one verb, `copy`, with events, retries and hooks."""
