"""Energy counters, on a made-up sysfs: sums, the counter's turn, absence."""

from __future__ import annotations

import pytest

from tunewise.measures.cost.energy import Rapl, joules_a_step


def package(root, number, micro, most=1_000_000):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir()
    (folder / "energy_uj").write_text(f"{micro}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder / "energy_uj"


def test_packages_are_added_and_parts_of_a_package_are_not(tmp_path):
    one, two = package(tmp_path, 0, 100), package(tmp_path, 1, 500)
    package(tmp_path, "0:0", 0)  # the cores of package 0: counted in it
    meter = Rapl.find(tmp_path)
    one.write_text("250100")
    two.write_text("750500")
    assert meter.joules() == pytest.approx(1.0)


def test_the_counter_may_go_round(tmp_path):
    file = package(tmp_path, 0, 900_000)
    meter = Rapl.find(tmp_path)
    file.write_text("100000")
    assert meter.joules() == pytest.approx(0.2)
    file.write_text("300000")
    assert meter.joules() == pytest.approx(0.4)


def test_no_counter_or_a_forbidden_one_is_none(tmp_path):
    assert Rapl.find(tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert Rapl.find(tmp_path) is None


def test_joules_a_step_is_the_mean_over_a_block():
    class Counter:
        source = "made up"
        used = 0.0

        def joules(self):
            return self.used

    meter = Counter()

    def step():
        meter.used += 2.5

    assert joules_a_step(step, meter, seconds=0.01, synchronize=lambda: None) == pytest.approx(2.5)
