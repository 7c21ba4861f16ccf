"""Intruders: planted ones are counted exactly, and all agrees with the dense computation and with PEFT's own tool."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from scipy.sparse import linalg as sparse
from transformers import BertConfig, BertModel

from measures.planted import COSINE, layer, orthonormal, plant, random_update
from tunewise.measures._linalg import merged_svd as low_rank_change
from tunewise.measures._linalg.base_spectra import BaseSpectra
from tunewise.measures._linalg.merged_svd import top_of_merged
from tunewise.measures.intruders.compute import IntrudersResult, layer_intruders, random_baseline
from tunewise.measures.intruders.scaled import scale_intruders
from tunewise.measures.updates.folder import updates_of
from tunewise.measures.updates.layer import LayerUpdate

NO_CACHE = BaseSpectra(None)
SHAPES = [(120, 120), (200, 90), (90, 200), (300, 64)]


def dense_cosines(update: LayerUpdate, count: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, letter for letter: two SVDs."""
    u0 = torch.linalg.svd(update.base.double(), full_matrices=False)[0]
    u1, values, _ = torch.linalg.svd(update.base.double() + update.delta(), full_matrices=False)
    cosines = (u1.T @ u0).abs().max(dim=1).values
    return cosines[:count], values[:count]


@pytest.mark.parametrize("shape", [*SHAPES, (40, 30), (24, 24)])
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_agrees_with_two_dense_decompositions(shape: tuple[int, int], rank: int) -> None:
    update = random_update(*shape, rank, size=0.4, seed=rank)
    found = layer_intruders(update, NO_CACHE.of(update.base), 10)
    cosines, values = dense_cosines(update, 10)
    assert found.solver == ("lanczos" if min(shape) > 44 else "plain")
    assert np.abs(np.array(found.cosines) - cosines.numpy()).max() < 1e-10
    assert np.abs(np.array(found.values) - values.numpy()).max() < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_a_dense_update_agrees_too(shape: tuple[int, int]) -> None:
    low = random_update(*shape, 4)
    noise = 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) / shape[1] ** 0.5
    update = LayerUpdate.of_dense("layer", layer(low.base), lambda: noise)
    found = layer_intruders(update, NO_CACHE.of(update.base), 10)
    cosines, values = dense_cosines(update, 10)
    assert found.solver == "gram"
    assert np.abs(np.array(found.cosines) - cosines.numpy()).max() < 1e-10
    assert np.abs(np.array(found.values) - values.numpy()).max() < 1e-10


@pytest.mark.parametrize("outside", [1.0, 1e-3, 1e-6, 1e-10, 0.0])
def test_tall_updates_that_lie_almost_inside_the_span_of_w0(outside: float) -> None:
    full = orthonormal(200, 90, 3)
    base = layer(full[:, :80] * torch.linspace(5, 1, 80, dtype=torch.float64) @ orthonormal(80, 80, 4).T)
    mixed = full[:, :80] @ orthonormal(80, 4, 5) + outside * full[:, 80:84]
    mixed[:, 0] -= outside * full[:, 80]  # one direction wholly inside
    update = LayerUpdate.of_factors("layer", base, 4 * mixed, orthonormal(80, 4, 6).T)
    found = layer_intruders(update, NO_CACHE.of(update.base), 10)
    cosines, values = dense_cosines(update, 10)
    assert found.solver == "lanczos"
    assert np.abs(np.array(found.cosines) - cosines.numpy()).max() < 1e-10
    assert np.abs(np.array(found.values) - values.numpy()).max() < 1e-10


def test_all_vectors_are_the_definition_over_all() -> None:
    update = random_update(70, 50, 6, size=0.5)
    found = layer_intruders(update, NO_CACHE.of(update.base), None)
    assert len(found.cosines) == 50
    assert np.abs(np.array(found.cosines) - dense_cosines(update, None)[0].numpy()).max() < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [0, 1, 3, 9])
def test_planted_intruders_are_counted_exactly(shape: tuple[int, int], count: int) -> None:
    planted = plant(*shape, count)
    found = layer_intruders(planted.update, NO_CACHE.of(planted.base.weight.detach()), 10)
    assert found.count(0.6) == found.count(COSINE + 1e-9) == count
    assert found.count(COSINE - 1e-9) == 0
    assert found.intruders(0.6) == list(range(count))
    assert found.cosines[:count] == pytest.approx([COSINE] * count, abs=1e-10)
    assert found.cosines[count:] == pytest.approx([1.0] * (10 - count), abs=1e-10)
    assert found.values == pytest.approx(planted.values_after[:10].tolist(), abs=1e-9)
    both = IntrudersResult(top_k=10, threshold=0.3, layers={"a": found, "b": found})
    assert [both.count(t) for t in (0.2, None, 0.999999)] == [0, 2 * count, 2 * count]


@pytest.mark.parametrize("shape", SHAPES)
def test_all_dimensions_hold_the_planted_ones_and_those_turned_along(shape: tuple[int, int]) -> None:
    """All 16 turned vectors are intruders where all are looked at, not the top 10 alone."""
    planted = plant(*shape, 3)
    found = layer_intruders(planted.update, NO_CACHE.of(planted.base.weight.detach()), None)
    assert found.count(0.6) == 16


def test_no_update_no_intruder() -> None:
    update = random_update(80, 80, 4, size=0.0)
    found = layer_intruders(update, NO_CACHE.of(update.base), 10)
    assert found.cosines == pytest.approx([1.0] * 10, abs=1e-12)
    assert found.count(0.999999) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_scaling_multiplies_the_intruders_values_and_nothing_else(shape: tuple[int, int], factor: float) -> None:
    planted = plant(*shape, 3)
    base = NO_CACHE.of(planted.base.weight.detach())
    scaled = scale_intruders(planted.update, base, factor)
    assert scaled.has_factors
    expected = planted.values_after.clone()
    expected[:3] *= factor
    found = torch.linalg.svdvals(scaled.merged())
    assert (found - expected.sort(descending=True).values).abs().max() < 1e-9
    # 15, 12.5, 10 are still above all but a tie; taken out, none is left in the top 10
    assert layer_intruders(scaled, base, 10).count(0.6) == {0.0: 0, 0.5: 3, 2.0: 3}[factor]


def test_scaling_a_dense_update_is_the_same() -> None:
    planted = plant(90, 120, 4)
    base = NO_CACHE.of(planted.base.weight.detach())
    dense = LayerUpdate.of_dense("layer", planted.base, planted.update.delta)
    for factor in (0.0, 0.7):
        by_factors = scale_intruders(planted.update, base, factor).delta()
        assert (scale_intruders(dense, base, factor).delta() - by_factors).abs().max() < 1e-10
    assert scale_intruders(dense, base, 1.0) is dense


def test_agrees_with_pefts_own_tool(tmp_path) -> None:
    """Counts and the mitigated update, on a real architecture; PEFT's works in fp32 and cuts back to rank r."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=50
    )
    base = BertModel(config).eval()
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=3, lora_alpha=6, target_modules=["query", "output.dense"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(tmp_path)
    lines: list[str] = []
    reduce_intruder_dimension(model, top_k=10, threshold_epsilon=0.5, mitigation_lambda=0.25, logging_sink=lines.append)
    theirs = {}
    for line in lines:
        if found := re.fullmatch(r"base_model\.model\.(.+): (?:No intruders|Intruders: (\d+))", line):
            theirs[found[1]] = int(found[2] or 0)
    updates = updates_of(tmp_path, base)
    ours = {n: layer_intruders(u, NO_CACHE.of(u.base), 10).count(0.5) for n, u in updates.items()}
    assert ours == theirs
    assert sum(ours.values()) > 0
    for name, update in updates.items():
        scaled = scale_intruders(update, NO_CACHE.of(update.base), 0.25, threshold=0.5)
        u, values, vh = scaled.top_singular_vectors(3)
        reduced = model.base_model.model.get_submodule(name).get_delta_weight("intruder_reduced").detach()
        assert (u * values @ vh - reduced).abs().max() < 1e-5 * values[0]


def test_the_baseline_is_what_random_directions_have() -> None:
    for rows, columns in [(400, 400), (1200, 300), (300, 900)]:
        u = orthonormal(rows, min(rows, columns), 0)
        x = orthonormal(rows, 200, 1)
        median = float((x.T @ u).abs().max(dim=1).values.median())
        assert median == pytest.approx(random_baseline(rows, columns), rel=0.1)
    assert random_baseline(768) == math.sqrt(2 * math.log(768) / 768)


def test_near_ties_are_left_to_the_plain_way() -> None:
    u, v = orthonormal(100, 100, 0), orthonormal(100, 100, 1)
    values = torch.linspace(5, 1, 100, dtype=torch.float64)
    values[2] = values[3]
    base = layer(u * values @ v.T)
    small = 1e-13 * torch.ones(100, 1, dtype=torch.float64)
    update = LayerUpdate.of_factors("layer", base, small, small.T)
    assert top_of_merged(update, NO_CACHE.of(update.base), 10).solver == "plain"


@pytest.mark.parametrize("fault", ["passes one over", "stops too early", "gives up"])
def test_what_lanczos_gets_wrong_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    update = random_update(120, 100, 4, size=0.5)
    expected = dense_cosines(update, 10)[0]

    def faulty(operator, k, **options):
        if fault == "gives up":
            raise sparse.ArpackNoConvergence("no", np.empty(0), np.empty((0, 0)))
        values, vectors = sparse.eigsh(operator, k=k + 1, **{**options, "ncv": None})
        if fault == "passes one over":
            kept = np.argsort(values)[::-1][[0, 1, 2, *range(4, k + 1)]]
            return values[kept], vectors[:, kept]
        return values[1:], vectors[:, 1:] + 1e-8

    assert top_of_merged(update, NO_CACHE.of(update.base), 10).solver == "lanczos"
    monkeypatch.setattr(low_rank_change, "eigsh", faulty)
    found = top_of_merged(update, NO_CACHE.of(update.base), 10)
    assert found.solver == "plain"
    assert (found.cosines.abs().amax(0) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("seed", range(4))
def test_eigenvalues_above_a_point_are_counted_right(seed: int) -> None:
    draw = np.random.default_rng(seed)
    d, g, h = draw.random(40) * 4, draw.standard_normal((40, 5)), draw.standard_normal((40, 5))
    c = draw.random(5)
    problem = low_rank_change._DiagonalPlusLowRank(d, g, h, c)
    values = np.linalg.eigvalsh(np.diag(d) + g @ h.T + h @ g.T + g * c @ g.T)[::-1]
    for place in range(39):
        assert problem.number_above(values[place], values[place + 1]) == place + 1
