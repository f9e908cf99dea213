"""Choosing the plan: the state, the budget, the reward, the environment, the agent and the baselines."""
