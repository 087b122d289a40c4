"""From a PyTorch module to a traced graph with one symbolic batch dimension."""
