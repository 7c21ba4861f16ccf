"""Each theorem as a numeric experiment: an expectation, a measurement with error bars, a verdict.

| file | contents |
| --- | --- |
| contract.py | the parts of an experiment, and the rule that turns findings into a verdict |
| registry.py | the ten experiments: theorem and expectation; imports nothing heavy |
| results.py, figures.py | runs an experiment; writes `result.json` and an offline page |
| batched.py | random streams, and many runs as one (`torch.func.vmap`) |
| lazy_problem.py, factored.py | LoRA in the NTK regime: the convex optimum with its proof, and LoRA's descent |
| linear_model.py, chains.py, chain_targets.py | shared by several experiments |
| one file for each experiment | `run(settings) -> Measurement` |
"""
