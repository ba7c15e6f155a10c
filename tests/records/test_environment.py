"""What a record says of the machine."""

import pytest

from lora_jax.records import environment


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["flags : fpu avx512_bf16", "vendor_id : AuthenticAMD"], True),
        (["flags : fpu avx512_bf16", "vendor_id : GenuineIntel"], False),
        (["flags : fpu amx_bf16 amx_tile", "vendor_id : GenuineIntel"], True),
        (["flags : fpu avx512_bf16_of_another_kind", "vendor_id : AuthenticAMD"], False),
        (["Features : fp asimd"], False),
        ([], True),
    ],
)
def test_only_processors_with_a_unit_multiply_bfloat16(lines, expected, monkeypatch):
    monkeypatch.setattr(environment, "processor", lambda *fields: lines)
    assert environment.multiplies_bfloat16() is expected
