"""A process that trains a few steps and prints how far its resident memory rose: the truth that forecasts are held to.

python train_child.py MODEL METHOD BATCH LENGTH TARGETS [SETTINGS], the last in JSON: `dtype`, `quantization`,
`checkpointing`, `accumulation`, `optimizer`.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path


def config_of(name):
    """Configurations of real models; their weights are random here, which changes no size."""
    from transformers import BertConfig, GPT2Config, LlamaConfig, RobertaConfig, ViTConfig

    known = {
        "minilm": lambda: BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        ),
        "roberta": lambda: RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
        "gpt2": lambda: GPT2Config(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0),
        "llama": lambda: LlamaConfig(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=8,
            num_attention_heads=16,
            num_key_value_heads=4,
            vocab_size=32000,
        ),
        "small-llama": lambda: LlamaConfig(
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=4,
            num_attention_heads=12,
            num_key_value_heads=4,
            vocab_size=16000,
        ),
        "vit": lambda: ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536),
    }
    return known[name]()


def miniature_of(name):
    config = config_of(name)
    config.num_hidden_layers, config.hidden_size, config.num_attention_heads = 1, 64, 4
    for key in ("intermediate_size", "n_inner"):
        if hasattr(config, key):
            setattr(config, key, 64)
    if hasattr(config, "vocab_size"):
        config.vocab_size = 1000
    if hasattr(config, "head_dim"):
        config.head_dim = 16
    return config


def task_of(name):
    from tunewise.tasks.build import task_class

    return task_class({"gpt2": "causal", "llama": "causal", "small-llama": "causal", "vit": "image"}.get(name, "text"))


def head_of(name):
    return task_of(name).make_head(("a", "b", "c", "d"))


def status(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def main(name, method, batch, length, targets, **settings):
    import torch

    from tunewise.measures.cost.peak_memory import give_back_freed_blocks

    give_back_freed_blocks()  # as the cost probe measures it
    torch.set_num_threads(1)
    # The libraries' own first-use memory is theirs, not the training's: a miniature is trained before the count.
    train(miniature_of(name), head_of(name), method, 2, 16, targets, **settings)
    gc.collect()
    before = status("VmRSS")
    train(config_of(name), head_of(name), method, batch, length, targets, **settings)
    print(status("VmHWM") - before)


def load(config, head, dtype, quantization):
    """Random weights, loaded from a folder where they are quantized; what loading takes besides is not counted."""
    import torch

    from tunewise.measures.cost.peak_memory import _reset_peak
    from tunewise.models.head import prepare
    from tunewise.models.load import load_model
    from tunewise.spec import ModelSpec

    model = head.model_class.from_config(config, dtype=getattr(torch, dtype))
    if quantization == "none":
        prepare(model, head)
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        model = load_model(ModelSpec(path=folder, dtype=dtype, quantization=quantization), head, seed=0)
        for parameter in model.parameters():
            if parameter.is_floating_point():  # else all pages of the file stay mapped, those of quantized layers too
                parameter.data = parameter.data.clone()
    gc.collect()
    _reset_peak()
    return model


def train(
    config,
    head,
    method,
    batch,
    length,
    targets,
    *,
    dtype="float32",
    quantization="none",
    checkpointing=False,
    accumulation=False,
    optimizer="adamw",
):
    import torch

    import tunewise
    from tunewise.catalog import CATALOG

    for key, value in head.config().items():
        setattr(config, key, value)
    config.pad_token_id = getattr(config, "pad_token_id", None) or 0
    model = load(config, head, dtype, quantization)
    model = tunewise.attach(model, method, rank=8, targets=targets, seed=0).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    steps = tunewise.optimizer(model, lr=1e-4, kind=optimizer)
    if "Image" in head.auto_class:
        inputs = {"pixel_values": torch.randn(batch, 3, 224, 224), "labels": torch.zeros(batch, dtype=torch.long)}
    else:
        ids = torch.randint(5, 1000, (batch, length))
        labels = ids if head.pretrained else torch.zeros(batch, dtype=torch.long)
        mask = torch.ones_like(ids)
        mask[0, -1] = 0  # as a padded batch has it
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    chain = CATALOG[method].chain
    for link in range(1 if chain is None else chain.links):
        if link:
            tunewise.restart(model)
        for _ in range(2 if chain is None else 1):
            for _ in range(1 + accumulation):
                model(**inputs).loss.backward()
            steps.step()
            steps.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], **json.loads((sys.argv[6:] or ["{}"])[0]))
