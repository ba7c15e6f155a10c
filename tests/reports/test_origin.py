"""Where a report comes from, and the way to the folders of its runs."""

import shutil

from fake_records import planted
from report_study import LABELS, made, make_study, rendered, wrong

from experiments.reports import html_page
from experiments.reports.html_page import Origin


def test_commits_and_versions_are_those_of_the_runs(tmp_path):
    root = make_study(tmp_path)
    git = {"commit": "0123456789abcdef", "dirty": True}
    for seed, version in enumerate(("0.10.1", "0.9.0")):
        folder = root / "lora" / str(seed)
        shutil.rmtree(folder)
        versions = {"jax": version, "lora_jax": "0.1.0", "python": "3.11.7"}
        mask = wrong((0.20, 0.22)[seed], seed)
        planted(folder, "lora", seed, LABELS, mask, rate=1e-3, git=git, versions=versions)
    found = html_page.origin_of(made(root), date="2026-11-28", command="x --a", commit="abc")
    assert found.lines() == [
        ("Generated 2026-11-28 at commit abc by", "x --a"),
        (
            "From the records of 18 runs at commit 0123456789 (with changes), with lora_jax 0.1.0, "
            "jax 0.10.1 and 0.9.0, python 3.11.7.",
            "",
        ),
    ]
    assert Origin().lines() == []
    assert Origin(runs=1, run_commits=("a", "b", "c", "d", "e")).lines() == [
        ("From the records of 1 run at commits a, b, c, d and 1 more.", "")
    ]


def test_a_row_leads_to_the_folders_of_its_runs(tmp_path):
    root = make_study(tmp_path / "my runs")
    (contest,) = made(root)
    start = tmp_path / "pages"
    lora, dora, vera = html_page.links_of(contest, start)
    addresses = ["../my%20runs/lora/0/", "../my%20runs/lora/1/", "../my%20runs/lora/2/"]
    assert lora == [("lora", "../my%20runs/lora/")]
    page = rendered([contest], "html", resamples=100, start=start)
    assert '<td><a href="../my%20runs/dora/">dora</a></td>' in page
    assert '<a href="../' not in rendered([contest], "html", resamples=100)
    shutil.move(root / "dora" / "0", root / "lora" / "of_dora")  # one folder of two methods
    (contest,) = made(root)
    lora, dora, vera = html_page.links_of(contest, start)
    assert lora == [(f"seed {seed}", each) for seed, each in enumerate(addresses)]
    assert dora[0] == ("seed 0", "../my%20runs/lora/of_dora/") and len(dora) == 3
    assert vera == [("vera", "../my%20runs/vera/")]
