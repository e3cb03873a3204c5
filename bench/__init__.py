"""The budgets of the project, measured. `python -m bench.run` prints them as one table."""
