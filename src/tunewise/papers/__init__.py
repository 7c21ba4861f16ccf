"""The experiments of "Beyond LoRA: Is Sparsity-Induced Adaptation Better?" (arXiv 2606.13767v1) as presets: its ten
models and fourteen data sets, its hyperparameters, its printed tables beside ours.

    printed.py    the printed figures, as they stand in data/*.csv
    models.py     the ten models: hub ids, and configurations for counting without a hub
    sets.py       the fourteen data sets: where they are had, what is wrong with them, how they are scored
    presets.py    a model, a data set and a table -> the content of a comparison
    sources.py    a hub id or a local folder -> the files of a set's parts
    prepare.py    these files -> files and a `DataSpec` that any comparison takes
    runs.py       which comparisons in a runs folder are of the paper
    tables.py     ours beside the printed ones; counts.py and bounds.py: Tables 6 and 1, which need no runs
    render.py     LaTeX, CSV, HTML, Markdown and the terminal
"""
