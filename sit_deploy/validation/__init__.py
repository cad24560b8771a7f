"""A finished bundle against the PyTorch model it was made from: accuracy, layers, time, evidence for a verdict."""
