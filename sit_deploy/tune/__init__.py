"""A plan for 8 bits chosen by measuring on the engine: the search, the decision, and the file of timings. No graph, no engine."""
