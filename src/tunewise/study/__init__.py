"""Studies: a policy says which runs come next, one loop hands them to an executor and tells the policy each result."""
