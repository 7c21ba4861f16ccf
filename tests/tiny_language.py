"""A tiny Llama with a tokenizer on disk, and toy texts that it can learn: what the end-to-end tests on language run on."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from tiny import FILLER, WORDS


def save_tiny_llama(folder: Path, *, hidden: int = 32, layers: int = 2) -> Path:
    """A Llama with random weights (fixed seed) and a word-level tokenizer: <s> goes before a text, nothing after it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", ":", *FILLER, *WORDS, *(w for ws in WORDS.values() for w in ws)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=48
    )
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=48,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
        initializer_range=0.3,  # the output embeddings stay as they are: small ones could not say anything clearly
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def save_toy_prompts(path: Path, prompts: int = 40, seed: int = 0) -> Path:
    """A table of prompts with two completions each: words, and the name of the class they are of."""
    draw = random.Random(seed)
    seen: set[str] = set()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "answer"])
        while len(seen) < prompts:
            kind = draw.choice(sorted(WORDS))
            words = draw.sample(WORDS[kind], 3)
            prompt = " ".join(words) + " :"
            if prompt not in seen:
                seen.add(prompt)
                writer.writerows([[prompt, kind], [prompt, f"the {kind}"]])
    return path


def save_toy_lines(path: Path, rows: int = 60, seed: int = 0) -> Path:
    """A text file, a line an example; no two alike."""
    draw = random.Random(seed)
    lines: dict[str, None] = {}
    while len(lines) < rows:
        kind = draw.choice(sorted(WORDS))
        lines[
            f"the {draw.choice(WORDS[kind])} and the {draw.choice(WORDS[kind])} with my {draw.choice(WORDS[kind])}"
        ] = None
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
