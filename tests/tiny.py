"""A tiny BERT with a tokenizer on disk, and toy data that it can learn: what the end-to-end tests run on."""

from __future__ import annotations

import csv
import random
from pathlib import Path

WORDS = {
    "animals": ["cat", "dog", "horse", "bird", "fish", "cow", "sheep", "goat"],
    "tools": ["hammer", "saw", "drill", "wrench", "pliers", "chisel", "file", "axe"],
    "food": ["bread", "cheese", "apple", "rice", "soup", "cake", "bean", "egg"],
}
FILLER = ["the", "a", "my", "old", "new", "big", "small", "and", "with", "near", "under", "over"]


def save_tiny_model(folder: Path, *, hidden: int = 32, layers: int = 2) -> Path:
    """A BERT encoder with random weights (fixed seed) and a word-level tokenizer, as a transformers folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLER, *(w for ws in WORDS.values() for w in ws)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def save_toy_csv(path: Path, rows: int = 120, seed: int = 0) -> Path:
    """Short texts, each with two words of its class among fillers; no two alike."""
    draw = random.Random(seed)
    seen: set[str] = set()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        while len(seen) < rows:
            label = draw.choice(sorted(WORDS))
            words = draw.sample(WORDS[label], 2) + draw.choices(FILLER, k=4)
            draw.shuffle(words)
            text = " ".join(words)
            if text not in seen:
                seen.add(text)
                writer.writerow([text, label])
    return path
