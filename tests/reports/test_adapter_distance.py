"""The picture of how far adapters are apart: what is drawn where."""

import numpy as np
import pytest

from experiments.reports.figures import adapter_distance as picture

NAN = np.nan


def test_bars_and_heat_maps(tmp_path, monkeypatch):
    """Bars are means over layers; maps, too, of the layers that have a direction."""
    norms = {
        "a": {"layers/up/kernel": np.array([0.1, 0.3]), "head/kernel": np.array(0.5)},
        "b": {"head/kernel": np.array(0.25)},
    }
    phi = {"layers/up/kernel": np.array([[[0.2, NAN]], [[0.6, NAN]]])}
    drawn = []
    save = picture.Figure.savefig
    monkeypatch.setattr(
        picture.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))
    )
    picture.adapter_distance(norms, phi, tmp_path / "distance.png")
    assert (tmp_path / "distance.png").read_bytes().startswith(b"\x89PNG")
    bars, heat, *_ = drawn[0].axes
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([0.2, 0.5, 0.25])
    assert [label.get_text() for label in bars.get_xticklabels()] == ["layers/up", "head"]
    first, second = bars.patches[1:]
    assert first.get_x() < second.get_x() and abs(second.get_x() - 1) < 0.5  # of one weight
    np.testing.assert_allclose(heat.images[0].get_array().filled(NAN), [[0.4, NAN]])
    picture.adapter_distance({"a": norms["a"]}, {}, tmp_path / "one.png")
    assert len(drawn[1].axes) == 1
