"""A report's formats and its page: the same text everywhere, and nothing from elsewhere."""

import csv
import functools
import html
import html.parser
import io
import itertools
import json
import re
import shutil
import subprocess

import commands
import numpy as np
import pytest
from fake_records import planted
from hypothesis import given, strategies as st
from report_study import rendered

from experiments.analysis import choose_methods, recorded_runs
from experiments.reports import document, plots
from experiments.reports.html_page import Origin
from lora_jax import table

NASTY = 'a|b & <i>50%</i> _x_ {y} #1 $2 ~ ^ \\ "z" $ [r=8]'
LABELS = np.tile([0, 1], 60)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
RUNS = {"lora": 0.2, "dora": 0.18, "vera": 0.4, NASTY: 0.25}
ORIGIN = Origin("2026-11-28", "python -m x --a=<b>", "0123456789", 2, ("ab",), {"jax": ["1", "2"]})
PARAMETERS = {"lora": 300_000, "dora": 310_000, "vera": 5_000, NASTY: 400_000}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two tasks, four methods, of which one has a name that no format may take for its own."""
    root = tmp_path_factory.mktemp("results")
    rng = np.random.default_rng(0)
    for task in ("sst2", "cola"):
        for number, (row, share) in enumerate(RUNS.items()):
            for rate, seed in itertools.product((1e-3, 2e-3), range(2)):
                mask = rng.random(120) < share + (rate - 1e-3) * 50
                method = row if row in ("lora", "dora", "vera") else "pissa"
                how = {"parameters": PARAMETERS[row], "peak_memory_bytes": 2**30 + number}
                how |= {"changes": {"study.row": row}, "seconds": 10.0 * (number + 1)}
                folder = root / task / str(number) / f"{rate}_{seed}"
                planted(folder, method, seed, LABELS, mask, task=task, rate=rate, **how)
    return root


@pytest.fixture(scope="module")
def contests(results):
    return choose_methods.contests(recorded_runs.find(results), {})


@pytest.fixture(scope="module")
def page(contests):
    return rendered(contests, "html", notes=["a note"], resamples=200, origin=ORIGIN)


class Reader(html.parser.HTMLParser):
    """The cells of a page's tables, its text, and what its attributes refer to."""

    EMPTY = ("meta", "path", "use", "rect")

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.rows, self.open, self.ids, self.references, self.tags = [], [], [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            self.ids += [value] * (name == "id")
            if name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_every_format_has_the_same_cells(contests, page, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    forms = set(document.FORMATS) - {"html"}  # which `page` is
    text = {form: rendered(contests, form, resamples=200) for form in forms}
    lines = [line for line in text["markdown"].splitlines() if line.startswith("|")]
    split = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in lines]
    cells = [[re.sub(r"\\(.)", r"\1", t) for t in row] for row in split if row[0] != "---"]
    assert len(cells) == 2 * (9 + 5 + 4) + 5  # settings, methods, differences; and wins

    reader = Reader()
    reader.feed(page)
    reader.close()
    negative = re.compile(r"(?<![\w.])-(?=\d)")
    assert reader.rows == [[negative.sub("−", t) for t in row] for row in cells]
    assert reader.open == [] and any("−" in t for row in reader.rows for t in row)

    body = re.findall(r"\\toprule\n(.*?)\\bottomrule", text["latex"], re.DOTALL)
    rows = [line.removesuffix(" \\\\") for part in body for line in part.splitlines()]
    back = {"$-$": "-"} | {code: sign for sign, code in table.LATEX.items()}
    pattern = "|".join(map(re.escape, sorted(back, key=len, reverse=True)))
    plain = [
        [re.sub(pattern, lambda m: back[m[0]], cell) for cell in re.split(r"(?<!\\) & ", row)]
        for row in rows
        if row != "\\midrule"
    ]
    assert plain == cells
    assert not re.search(r"(?<!\\)[%#_]", text["latex"].partition(table.PACKAGES)[2])

    values = list(csv.DictReader(io.StringIO(text["csv"])))
    named = [line for line in values if line["line"] == "method"]
    assert {line["label"] for line in named} == {row[0] for row in cells} - {"method"}
    assert len(named) == 8 and len(values) == 16 + 8 + 3 * 12
    tests = "over both +p, both +over seeds +p, seeds +over examples +p, examples"
    assert len(re.findall(tests, text["rich"])) == 2
    head = "% Comparison of methods\n% \\usepackage{booktabs, graphicx}\n"
    assert text["latex"].startswith(head)
    fit = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{\begin{tabular}{l"
    assert text["latex"].count(fit) == text["latex"].count("\\end{tabular}}") == 7
    for form in ("rich", "markdown", "latex"):
        assert "Warning, CoLA: " in text[form] and "same examples" in text[form]


def test_the_page_refers_to_nothing_outside_and_repeats_no_id(page):
    reader = Reader()
    reader.feed(page)
    assert reader.references and all(each.startswith("#") for each in reader.references)
    assert {each[1:] for each in reader.references} <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)
    assert not reader.tags & {"link", "img", "iframe", "object", "embed", "i"}
    assert page.count("<script>") == page.count("<script") == 1 and "fetch" not in page
    assert '<meta name="viewport" content="width=device-width' in page
    assert "@import" not in page and page.count("<svg") == 2 + 2 * 3
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    outside = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert outside == {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # names


def test_the_page_is_the_same_every_time(contests, page):
    again = rendered(contests, "html", notes=["a note"], resamples=200, origin=ORIGIN)
    assert again == page


def test_the_page_says_what_was_found_first(page):
    parts = (
        '<p class="verdict">',
        "<nav",
        "Generated 2026-11-28 at commit 0123456789 by <code>python -m x --a=&lt;b&gt;</code>",
        "From the records of 2 runs at commit ab, with jax 1 and 2.",
        ">All settings, CoLA</h2>",
        "<table",
        ">Difference from LoRA</h2>",
        ">Scores against parameters</h3>",
        ">Scores by learning rate</h3>",
        ">What the numbers are</h2>",
    )
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    verdict = page[places[0] : places[1]]
    assert "In 6 comparisons with LoRA (3 methods on 2 tasks), with 2 seeds, " in verdict
    titles = re.findall(r'<section id="(\w+)"><h2>(.*?)</h2>', page)
    assert re.findall(r'<li><a href="#(\w+)">(.*?)</a></li>', page) == titles
    captions = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == 8 and all("n = 2" in text for text in captions)


def test_pictures_on_the_page_have_no_colours_of_their_own(page):
    """Those of the page's style, which has others in dark mode."""
    drawn = page[page.index("<svg") : page.rindex("</svg>")]
    assert not re.search(r"(?:fill|stroke): ?#", drawn)
    used = set(re.findall(r"var\((--\w+)\)", drawn))
    style = page.partition("<style>")[2].partition("</style>")[0]
    light, dark = style.split("prefers-color-scheme: dark")
    assert used >= {"--blue", "--grey", "--orange"}
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_in_a_browser(page, tmp_path, width):
    script = """<script>addEventListener("load", () => {
      const inner = frames[0], page = inner.document, all = name => [...page.querySelectorAll(name)]
      const column = head => [...head.closest("table").tBodies[0].rows].map(
        row => row.children[head.cellIndex].textContent).join("; ")
      const orders = {}
      const methods = all("table").find(each => each.tHead.textContent.includes("parameters"))
      for (const head of [...methods.querySelectorAll("thead th")].slice(0, 5)) {
        head.querySelector("button").click()
        orders[head.textContent] = column(head)
      }
      document.body.dataset.orders = JSON.stringify(orders)
      document.body.dataset.seen = [
        inner.innerWidth, page.documentElement.scrollWidth, page.images.length,
        inner.performance.getEntriesByType("resource").length, all("svg").length,
        Math.min(...all("svg").map(each => each.getBoundingClientRect().width)),
        all(".scroll").filter(each => each.clientWidth > inner.innerWidth).length,
      ].join(" ")
    })</script>"""
    frame = f'<iframe style="width:{width}px" frameborder=0 srcdoc="{html.escape(page)}"></iframe>'
    path = tmp_path / "page.html"  # windows may not be as narrow as a telephone, frames may
    path.write_text(f"<!DOCTYPE html><body>{frame}{script}</body>", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900"]
    line = [str(BROWSER), *options, "--hide-scrollbars", "--dump-dom", path.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen is not None, done.stderr
    inner, whole, images, fetched, drawn, narrowest, wide = map(float, seen[1].split())
    assert inner == width and whole <= width  # tables scroll in their own boxes, not the page
    assert (images, fetched, drawn, wide) == (0, 0, 8, 0)
    assert narrowest >= 300
    orders = re.search(r'data-orders="([^"]*)"', done.stdout)
    assert orders is not None
    sorted_by = json.loads(html.unescape(orders[1]))
    names = sorted_by["method"].split("; ")
    assert names[1:] == ["DoRA", "LoRA", "VeRA"] and names[0] == NASTY
    assert sorted_by["parameters"] == "400,000; 310,000; 300,000; 5,000"


def test_the_chosen_learning_rate_is_ringed(contests):
    figure = plots.by_rate(contests[1])
    by_label = {method.label: method for method in contests[1].methods}
    shown = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert len(shown) == len(by_label) == 4
    for label in ("LoRA", "DoRA", "VeRA"):
        (ring,) = (line for line in shown[label].lines if line.get_markersize() == 8)
        assert list(ring.get_xdata()) == [by_label[label].chosen.rate]
    rates, means, _ = zip(*plots.best_by_rate(by_label["LoRA"], "accuracy"), strict=True)
    assert rates == (1e-3, 2e-3)
    assert max(means) == pytest.approx(np.mean(list(by_label["LoRA"].scores().values())))


def test_the_pareto_front_is_drawn_through_the_best(contests):
    figure = plots.by_cost(contests[0], "x", lambda spent: max(spent.parameters))
    (axes,) = figure.axes
    (front,) = (line for line in axes.lines if line.get_label() == "Pareto front")
    assert list(front.get_xdata()) == sorted(front.get_xdata())
    assert list(front.get_ydata()) == sorted(front.get_ydata())
    assert front.get_xdata()[0] == 5_000


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=9))
def test_the_pareto_front_is_what_no_point_beats(points):
    costs, scores = zip(*points, strict=True)
    front = plots.pareto(costs, scores)
    beaten = {
        (c, s) for c, s in points if any(a <= c and b >= s and (a, b) != (c, s) for a, b in points)
    }
    assert [points[i] for i in front] == sorted(set(points) - beaten)


def test_the_command(results, tmp_path):
    arguments = ("experiments.report", f"--results={results}")
    run = functools.partial(commands.run, *arguments, COLUMNS="200")
    out = tmp_path / "new" / "report.csv"
    options = [f"--out={out}", f"--figures={tmp_path / 'figures'}"]
    done = run(*options, "--resamples=200", "--reference=dora", "--table=glue")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == f"report: {out}"
    assert any(row["other"] == "dora" for row in csv.DictReader(out.open(encoding="utf-8")))
    for form, begins in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        files = list((tmp_path / "figures").glob(f"*.{form}"))
        assert len(files) == 8 and all(each.read_bytes().startswith(begins) for each in files)
    done = run("--varies=train.bach_size", f"--figures={out}")
    assert done.stderr == f"error: --figures={out} is a file: name a folder\n"
    done = run("--format=html", f"--out={out}")
    assert "exists and is not a report with --format=html" in done.stderr
    done = run("--varies=train.bach_size", "--table=glue")
    said = "error: --varies=train.bach_size: no run has this setting; nearest: 'train.batch_size'"
    assert done.stderr.startswith(said)
    done = run(f"--results={tmp_path / 'nowhere'}")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert re.match("error: --results .*nowhere: no such folder", done.stderr)
