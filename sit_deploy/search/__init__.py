"""The search for a token schedule by a latency: what there is to choose from, what is tried, and what is chosen. No model, no engine."""
