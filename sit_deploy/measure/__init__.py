"""What two sets of logits say about each other: parity, accuracy, and whether they can be believed."""
