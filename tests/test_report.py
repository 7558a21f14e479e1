"""The HTML report: its structure in plain Python, its filters and sorting in headless Chromium."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

import collect_results
from collect.report import without_figures
from record_samples import record, write

PUBLISHED = Path(__file__).resolve().parents[1] / "results/published.json"
VOID = {"meta", "br", "link", "img", "input", "hr"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"
)


class Page(HTMLParser):
    """Collects what the tests ask for, and refuses tags that do not close each other."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.rows, self.attributes, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.attributes.append((tag, attrs))
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    runs = []
    for seed in range(3):
        runs += [record("fp32", seed, 0.5 + seed / 100), record("daq", seed, 0.505 + seed / 100)]
        video = dict(task="video", network="clips<b>")
        runs += [record(recipe, seed, 0.2 + seed / 10, **video) for recipe in ("fp32", "paper")]
    write(path / "records", *runs)
    arguments = [str(path / "records"), "--out", str(path), "--html", str(path / "report.html")]
    assert collect_results.main([*arguments, "--published", str(PUBLISHED)]) == 0
    return path


@pytest.fixture(scope="module")
def html(folder):
    return (folder / "report.html").read_text()


def test_tags_close_and_ids_are_unique(html):
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', html):
        assert target in page.ids


def test_nothing_is_fetched(html):
    page = Page(html)
    assert not [tag for tag, _ in page.attributes if tag in ("link", "iframe", "img", "base")]
    for _, attrs in page.attributes:
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith("#")
    assert "@import" not in html
    assert "default-src 'none'" in html
    addresses = set(re.findall(r"https?://[^\"' <)]+", html))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_tables_hold_every_cell_and_run(html):
    page = Page(html)
    rows = [row for row in page.rows if row[:2] == ["detection", "netcoco/bbox_mAP"]]
    assert len(rows) == 2
    assert rows[1][4] == "51.50 ± 1.00"
    assert rows[1][5] == "+0.50 ± 0.00"
    assert rows[1][7] == "better"
    assert len([row for row in page.rows if row[:1] == ["video"] and len(row) > 12]) == 6
    assert any("76.59" in row for row in page.rows)
    assert "None of them was measured here." in page.words


def test_names_are_escaped_and_figures_inline(html):
    assert "clips<b>" not in html
    assert html.count("clips&lt;b&gt;") >= 4
    page = Page(html)
    figures = [attrs for tag, attrs in page.attributes if attrs.get("class") == "figure"]
    assert len(figures) == 2 + 3
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in figures)
    assert "currentColor" in html


def test_sorting_keys_are_numbers_where_the_column_is(html):
    page = Page(html)
    for tag, attrs in page.attributes:
        if tag == "td" and attrs.get("class") == "number" and attrs["data-value"]:
            float(attrs["data-value"])


def test_check_sees_a_changed_report_but_not_how_a_figure_is_drawn(folder, html, capsys):
    path = folder / "report.html"
    arguments = [str(folder / "records"), "--out", str(folder), "--html", str(path)]
    arguments += ["--published", str(PUBLISHED), "--check"]
    assert collect_results.main(arguments) == 0
    path.write_text(html.replace("stroke-width: 2", "stroke-width: 3"))
    assert path.read_text() != html
    assert collect_results.main(arguments) == 0
    path.write_text(html.replace("51.50 ± 1.00", "51.60 ± 1.00"))
    capsys.readouterr()
    assert collect_results.main(arguments) == 1
    assert capsys.readouterr().out == f"out of date: {path}\n"
    path.write_text(html)


def test_times_can_be_left_out(folder, tmp_path):
    target = tmp_path / "r.html"
    arguments = [str(folder / "records"), "--out", str(tmp_path), "--html", str(target)]
    assert collect_results.main([*arguments, "--without-times"]) == 0
    text = target.read_text()
    assert "s/iteration" not in text
    assert "Accuracy against speed" not in text
    assert "shared their machine" in text


@pytest.mark.parametrize(
    "runs",
    [
        [record("daq"), record("paper")],
        [record("fp32"), record("daq")],
        [record("fp32")] + [record(network=f"net{i}") for i in range(5)],
        [record("daq", settings={"mcs_k": 1.1}, label="mcs_k=1.1")],
    ],
    ids=["no fp32", "one seed", "many networks", "only changed settings"],
)
def test_little_and_much_can_be_shown(runs, tmp_path):
    target = tmp_path / "r.html"
    arguments = [str(write(tmp_path / "records", *runs)), "--out", str(tmp_path)]
    assert collect_results.main([*arguments, "--html", str(target), "--figures"]) == 0
    assert not re.search(r"\bnan\b", without_figures(target.read_text()))
    assert collect_results.main([*arguments, "--html", str(target), "--figures", "--check"]) == 0
    Page(target.read_text())


def browse(html, tmp_path, *, state="", script="", flags=("--dump-dom",)):
    """The page after its scripts and `script` have run; errors of scripts fail the test."""
    catch = "<script>onerror = (m) => { document.documentElement.dataset.error = m; };</script>"
    text = html.replace("<head>", f"<head>{catch}", 1)
    text = text.replace("</body>", f"<script>{script}</script></body>")
    page = tmp_path / "page.html"
    page.write_text(text)
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--window-size=1280,900", *flags, f"{page.as_uri()}#{state}"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "data-error" not in result.stdout.partition("<head>")[0]
    return result.stdout


def shown(dom, table="results"):
    """Method names of the rows of a table that are not hidden, in their order."""
    body = dom.partition(f'id="{table}"')[2].partition("</table>")[0].partition("<tbody>")[2]
    rows = re.findall(r"<tr ([^>]*)>", body)
    return [re.search('data-method="([^"]*)"', row)[1] for row in rows if "hidden" not in row]


@needs_chromium
def test_state_in_the_address_filters_sorts_and_sets_the_theme(html, tmp_path):
    dom = browse(html, tmp_path, state="task=video&sort=results:4:descending&theme=dark")
    assert shown(dom) == ["fp32", "paper"]
    assert 'data-theme="dark"' in dom
    assert 'aria-sort="descending"' in dom
    assert "2 of 4 cells shown" in dom
    assert re.search(r'<figure data-task="detection" hidden', dom)
    dom = browse(html, tmp_path, state="method=daq,paper&sort=results:4:ascending")
    assert shown(dom) == ["paper", "daq"]
    assert shown(dom, "runs") == ["daq"] * 3 + ["paper"] * 3


@needs_chromium
def test_clicks_filter_sort_and_change_the_theme(html, tmp_path):
    script = """
    const click = (selector) => document.querySelector(selector).click();
    click('.chip[data-value=daq]');
    click('.chip[data-value=fp32]');
    click('.chip[data-value=daq]');
    const value = document.querySelectorAll('#results th button')[4];
    value.click();
    value.click();
    click('#theme');
    document.body.dataset.hash = location.hash;
    document.body.dataset.wide =
      document.documentElement.scrollWidth - document.documentElement.clientWidth;
    document.body.dataset.ink = getComputedStyle(document.body).color;
    """
    dom = browse(html, tmp_path, script=script)
    assert shown(dom) == ["fp32", "fp32"]
    body = dom.partition("<body")[2].partition(">")[0]
    assert "method=fp32" in body
    assert "sort=results%3A4%3Adescending" in body
    assert 'data-wide="0"' in body
    assert 'data-ink="rgb(230, 232, 235)"' in body  # the ink of the dark theme


@needs_chromium
def test_an_error_of_a_script_would_be_seen(html, tmp_path):
    with pytest.raises(AssertionError, match="data-error"):
        browse(html, tmp_path, script="null.click()")


@needs_chromium
def test_a_screenshot_is_not_blank(html, tmp_path):
    picture = tmp_path / "shot.png"
    browse(html, tmp_path, flags=(f"--screenshot={picture}",))
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (900, 1280)
    assert pixels[..., :3].std() > 0.05
