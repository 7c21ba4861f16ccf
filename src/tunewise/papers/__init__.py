"""What papers need: experiments for their theorems, and the setup of "Beyond LoRA: Is Sparsity-Induced Adaptation
Better?" (arXiv 2606.13767v1) as presets, with its printed tables beside our numbers.

| file | contents |
| --- | --- |
| lab/ | the theorems as numeric experiments |
| printed.py, data/ | the printed numbers |
| models.py, sets.py, presets.py | ten models, fourteen data sets (data/sets.yaml), the comparison of each pair |
| reading.py, forms.py, prepare.py | public files -> rows -> examples -> a `DataSpec` |
| ablations.py | Tables 8 to 13 and Figure 6 (data/ablations.yaml) as sweeps |
| runs.py, tables.py, counts.py, bounds.py | our numbers beside the printed ones |
| sheet.py | a table in LaTeX, CSV, Markdown and the terminal |

The package imports the product; only the command line imports it.
"""
