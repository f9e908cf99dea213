"""What we do to the model: plans, ranking, refit and surgery."""
