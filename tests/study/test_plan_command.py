"""`tunewise plan` as a user types it: output, and what is said of bad input."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_line import invoke
from tiny import save_tiny_model

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
RUN = "import sys; sys.argv[0] = 'tunewise'; from tunewise.cli.main import run; run()"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("plan") / "model")


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def plan(monkeypatch, capsys):
    """`tunewise plan` in this process, at a width of the terminal."""

    def run(cache, *arguments, columns=110):
        monkeypatch.setenv("TUNEWISE_CACHE", str(cache))
        monkeypatch.setenv("COLUMNS", str(columns))
        code = invoke(monkeypatch, "plan", *arguments)
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return run


def test_json_has_every_method(plan, model, tmp_path):
    asked = ("--model", str(model), "--samples", "500", "--json")
    first = plan(tmp_path, *asked)
    rows = json.loads(first.stdout)
    for row in rows:
        assert {"method", "trainable_parameters", "trainable_share", "memory_bytes", "information_bound"} <= row.keys()
    assert len(rows) == 17


def test_a_table_for_people(plan, model, tmp_path):
    said = plan(tmp_path, "--model", str(model), "--methods", "lora,cla", "--samples", "100").stdout
    assert "lora" in said and "memory" in said and "Theorem 7" in said


def test_a_plan_says_which_methods_change_the_outputs_and_which_have_no_rank(plan, model, tmp_path):
    asked = ("--model", str(model), "--methods", "lora,lora-one,peft:fourierft,peft:ia3", "--rank", "4")
    rows = {row["method"]: row for row in json.loads(plan(tmp_path, *asked, "--json").stdout)}
    assert rows["lora"]["start"] == "" and rows["lora"]["rank"] == 4 and rows["peft:ia3"]["rank"] is None
    assert rows["peft:fourierft"]["start"] == "starts at a random update: attaching changes the model's outputs"
    assert rows["lora-one"]["start"] == "starts at a step of the gradient: attaching changes the model's outputs"
    said = " ".join(plan(tmp_path, *asked).stdout.split())
    assert all(f"{name} {rows[name]['start']}." in said for name in ("peft:fourierft", "lora-one"))
    assert "peft:ia3: no rank." in said
    alone = plan(tmp_path, "--model", str(model), "--methods", "peft:ia3", "--rank", "4")
    assert alone.returncode and "'peft:ia3' has no rank" in alone.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "lorra"), "did you mean 'lora'"),
        (("--methods", "lora", "--rank", "4000"), "rank"),
        (("--methods", "lora", "--targets", "nowhere"), "nowhere"),
        (("--methods", "lora", "--length", "100000"), "positions"),
        (("--task", "poetry"), "choose one of"),
    ],
)
def test_bad_input_is_one_line(plan, model, tmp_path, arguments, words):
    done = plan(tmp_path, "--model", str(model), *arguments)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last


LINEAR = {  # weights of the linear layers of the blocks, from each config.json
    "llama-3-8b": 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096),
    "llama-3-70b": 80 * (2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 28672 * 8192),
    "qwen3-30b-a3b": 48 * (2 * 4096 * 2048 + 2 * 512 * 2048),
}
OTHERS = {  # embeddings, output layer, norms; the routers and experts of the third are no linear layers
    "llama-3-8b": 2 * 128256 * 4096 + 65 * 4096,
    "llama-3-70b": 2 * 128256 * 8192 + 161 * 8192,
    "qwen3-30b-a3b": 2 * 151936 * 2048 + 97 * 2048 + 48 * (2 * 128 + 128 * 2048 + 128 * 3 * 768 * 2048),
}


@pytest.mark.parametrize("name", LINEAR)
def test_large_models_in_4_bits_are_planned_from_their_config(plan, tmp_path, name):
    """Half a byte for a linear weight, one more for 64, four more for 64 x 256; all else in the checkpoint's bf16."""
    asked = ("--methods", "lora", "--rank", "8", "--quantization", "nf4", "--device", "cuda", "--batch-size", "1")
    began = time.process_time()
    done = plan(tmp_path, "--model", str(CONFIGS / name), *asked, "--gradient-checkpointing", "--json")
    assert time.process_time() - began < 2
    (row,) = json.loads(done.stdout)
    weights = row["weight_bytes"] - 4 * row["adapter_parameters"]
    expected = LINEAR[name] * (0.5 + 1 / 64 + 4 / (64 * 256)) + 2 * OTHERS[name]
    assert weights == pytest.approx(expected, rel=1e-5)
    logits = 4 * 1024 * json.loads((CONFIGS / name / "config.json").read_text())["vocab_size"]
    assert row["memory_bytes"] > row["weight_bytes"] + row["optimizer_bytes"] + 2 * logits  # and their gradients


def test_settings_of_a_study_are_those_of_its_plan(plan, tmp_path):
    """Each lowers what it is there to lower."""

    def need(*arguments):
        asked = ("--model", str(CONFIGS / "llama-3-8b"), "--methods", "lora", "--length", "256", "--json")
        return json.loads(plan(tmp_path, *asked, *arguments).stdout)[0]

    plain, bf16 = need(), need("--dtype", "bfloat16")
    adapter = 4 * plain["adapter_parameters"]  # in fp32 on either
    assert plain["weight_bytes"] - adapter == pytest.approx(2 * (bf16["weight_bytes"] - adapter), rel=1e-6)
    eight = need("--dtype", "bfloat16", "--optimizer", "adamw_8bit")
    assert eight["optimizer_bytes"] < 0.26 * bf16["optimizer_bytes"] == 0.26 * 8 * bf16["trainable_parameters"]
    recomputed = need("--dtype", "bfloat16", "--gradient-checkpointing")
    assert recomputed["activation_bytes"] < 0.2 * bf16["activation_bytes"]
    accumulated = need("--dtype", "bfloat16", "--gradient-accumulation-steps", "4")
    assert 0 < accumulated["memory_bytes"] - bf16["memory_bytes"] <= bf16["gradient_bytes"]


def test_a_plan_in_4_bits_has_every_method_but_full_fine_tuning(plan, tmp_path):
    asked = ("--model", str(CONFIGS / "llama-3-8b"), "--quantization", "nf4", "--length", "16")
    assert "fft" not in {row["method"] for row in json.loads(plan(tmp_path, *asked, "--json").stdout)}
    said = plan(tmp_path, *asked, "--methods", "fft")
    assert said.returncode == 2 and "fft" in said.stderr
