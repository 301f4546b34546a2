"""How good a ranking model's predictions are: metrics a task, intervals over users, and comparisons of two models."""
