"""Frameworks by the names that tables call them."""

from __future__ import annotations

import pytest

from hpdlf.errors import DataError
from hpdlf.models.cost import software as module
from hpdlf.models.cost.software import load_software, parsed, softwares

ENTRY = {
    "name": "any", "names": ["*"], "fuses": "none", "attention": 2, "call_s": 0.0,
    **{field: {"value": 1.0, "spread": 0.1, "on": "nothing"} for field in ("products", "rows", "communication")},
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Megatron", "megatron"),
        ("megatron-deepspeed", "megatron-deepspeed"),
        ("nemo NGC 24.09", "nemo 24.09"),
        ("pytorch NGC 21.03", "pytorch 21.03"),
        ("pytorch/composer FSDP", "composer"),
        ("tensorflow 1.15.2 (NGC 20.03)", "tensorflow 1.15"),
        ("mxnet NGC 20.06", "mxnet 20.06"),
        ("jax/maxtext", "jax maxtext"),
        ("nothing that anybody wrote", "any"),
        ("", "any"),
    ],
)
def test_names_of_tables_find_their_software(text, name):
    assert load_software(text).name == name


def test_versions_stand_before_their_framework():
    """Every entry can be reached by its own name or by one of its patterns."""
    for software in softwares():
        texts = [pattern.replace("*", "") for pattern in software.names] + [software.names[0].replace("*", " 9 ")]
        assert any(load_software(text) is software for text in texts), software.name


def test_three_numbers_each_with_its_spread_and_what_it_was_fitted_on():
    for software in softwares():
        fitted = [
            software.products,
            software.communication,
            software.step_s if software.step_s.spread else software.rows,
        ]
        for scalar in fitted:
            assert 0.1 < scalar.value < 10 or scalar is software.step_s, software.name
            assert 0 < scalar.spread < 1
            assert scalar.on
        assert software.step_s.value == 0 or software.rows.value == 1, f"{software.name}: more than three"


def test_what_an_entry_does_not_say_is_as_in_the_one_it_is_like():
    said = {"format": 1, "software": [{"name": "mine", "names": ["mine"], "like": "any", "fuses": "all"}, ENTRY]}
    mine, other = parsed(said)
    assert (mine.fuses, other.fuses) == ("all", "none")
    assert mine.rows == other.rows


@pytest.mark.parametrize(
    "change",
    [{"fuses": "some"}, {"attention": 7}, {"rows": {"value": -1.0, "spread": 0.1, "on": ""}}, {"names": ["x"]}],
)
def test_entries_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=r"any|\*"):
        parsed({"format": 1, "software": [{**ENTRY, **change}]})


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "software.toml").write_text("format = 1\n[[software]]\nname = 'x'\n")
    monkeypatch.setattr(module, "SOFTWARE_FILE", tmp_path / "software.toml")
    softwares.cache_clear()
    try:
        with pytest.raises(DataError, match=r"software\.toml"):
            softwares()
    finally:
        softwares.cache_clear()


def test_a_gap_takes_the_place_of_a_factor_on_rows():
    gap = {"value": 0.25, "spread": 0.2, "on": "12 runs"}
    said = {"format": 1, "software": [{"name": "mine", "names": ["mine"], "like": "any", "step_s": gap}, ENTRY]}
    mine, other = parsed(said)
    assert (mine.step_s.value, mine.rows.value) == (0.25, 1.0)
    assert other.step_s.value == 0.0
