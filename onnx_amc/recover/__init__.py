"""Recovery: the cut network is trained to give the original's outputs, and its weights go back into the same graph."""
