"""Each theorem as a numeric experiment: a stated expectation, a measurement with error bars, a verdict.

| file | what |
| --- | --- |
| contract.py | Settings, Finding, Plot, Outcome, Experiment, Result; the one rule that turns findings into a verdict |
| registry.py | the ten experiments: theorem, expectation, and where the code is; imports nothing heavy |
| perform.py | runs one and adds verdict, time, versions |
| batched.py | many runs as one (`torch.func.vmap`), and how much faster that is than a loop |
| fits.py | slopes with intervals |
| write.py, figures.py | `result.json` and a page that works offline |
| lazy_problem.py, factored.py | LoRA in the NTK regime: the convex judge with its certificate, and LoRA's own descent |
| linear_model.py, chains.py, chain_targets.py | what several experiments share of linear models and of chains |
| one file an experiment | `run(settings) -> Outcome` |
"""
