"""What the model is: loading, the operator rules, channel groups and their price."""
