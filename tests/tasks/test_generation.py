"""Completions that are generated: against the model's own argmax, but for white space, on validation and test alone."""

from __future__ import annotations

import torch

from tiny_language import save_tiny_llama, save_toy_prompts
from tunewise.spec import DataSpec, ModelSpec
from tunewise.tasks.generation import Generation, normalize_spaces, prompt_of
from tunewise.training.evaluation import evaluate

EOS = 2


def test_exact_match_is_what_decoding_by_hand_finds(tmp_path):
    """A reference loop without cache or padding; the tiny model is first taught a part of the answers."""
    model_spec = ModelSpec(path=str(save_tiny_llama(tmp_path / "model")))
    data = DataSpec(path=str(save_toy_prompts(tmp_path / "toy.csv", prompts=24)), text="prompt", label="answer")
    task = Generation(model_spec, data, 32)
    model = task.load_model(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = task.collate(task.test)
    for _ in range(12):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = evaluate(model, task, task.test, batch_size=5)
    right = [by_hand(model, task, row) == row["reference"] for row in task.test]
    assert 0 < sum(right) < len(right)  # of two completions of one prompt the model can say one
    assert found.logits[:, 3].tolist() == [float(one) for one in right]
    assert found.scores.metrics["exact_match"] == sum(right) / len(right)
    assert "exact_match" not in evaluate(model, task, task.train, batch_size=5).scores.metrics


@torch.no_grad()
def by_hand(model, task, row):
    ids, new = prompt_of(row), []
    while len(new) < 20:
        new.append(int(model.eval()(torch.tensor([ids + new])).logits[0, -1].argmax()))
        if new[-1] == EOS:
            return normalize_spaces(task.tokenizer.decode(new[:-1]))
    return None


def test_white_space_is_normalized():
    assert normalize_spaces("  if  x :\n\treturn y ") == "if x : return y"
