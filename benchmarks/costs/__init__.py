"""What `step_cost.py` is made of: networks, the lines that are compared on them, counts, and a clock."""
