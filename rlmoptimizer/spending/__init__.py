"""Spending: units of the budget, dollars, and the calls that cost them."""
