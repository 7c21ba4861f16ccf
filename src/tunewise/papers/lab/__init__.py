"""Each theorem as a numeric experiment: an expectation, a measurement with error bars, a verdict.

| file | contents |
| --- | --- |
| experiments.yaml, registry.py | the ten experiments: theorem and expectation; imports nothing heavy |
| contract.py | the parts of an experiment, and the rule that turns findings into a verdict |
| results.py, figures.py | runs an experiment; writes `result.json` and an offline page |
| batched.py | random streams, and many runs as one (`torch.func.vmap`) |
| linear_model.py | the linear model of three experiments |
| lazy_problem.py | LoRA in the NTK regime: the convex optimum with its proof, and LoRA's descent |
| one file for each experiment | `run(settings) -> Measurement` |
"""
