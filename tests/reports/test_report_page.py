"""The report as a page: its numbers are those of ``--json``, it loads nothing, and it says what it does not know."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from sweep_folder import SCORES, make, run

from fedgh_app.config.compose import compose_config
from fedgh_app.errors import UserError
from fedgh_app.reports import figures as report_figures
from fedgh_app.reports.page import write
from fedgh_app.reports.statistics import Setting, compare, settings_of
from fedgh_app.runs import storage

BREAK = "<script>alert(1)</script> a|b"


class Page(HTMLParser):
    """Tables by section, as rows of cells; every tag; the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.section, self.open_tags, self.in_cell = "", [""], False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag == "section":
            self.section = str(found["id"])
        elif tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        elif tag in ("th", "td"):
            self.tables[self.section][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td"):
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.tables[self.section][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("report") / "arm-strategies")
    write(settings_of([folder]), [folder], folder, "FedAvg")
    return folder


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def test_the_tables_have_the_numbers_of_json(sweep: Path) -> None:
    page, rows = page_of(sweep), compare(settings_of([sweep]), "FedAvg")
    told = ["PCK@0.2 (%)", "worst client (%)", "AUC (%)", "heatmap accuracy (%)", "seconds a run", "rejected replies"]
    assert page.tables["results"][0] == ["setting", "runs", *told]
    for cells, row in zip(page.tables["results"][1:], rows, strict=True):
        score = f"{percent(row['score']['mean'])} ± {percent(row['score']['std'])}"
        worst = f"{percent(row['worst_client']['mean'])} ± {percent(row['worst_client']['std'])}"
        assert cells[:4] == [row["setting"], str(row["runs"]), score, worst]
        assert cells[4:6] == ["30.0 ± 0.0", "40.0 ± 0.0"]
        assert cells[7] == str(row["rejected"])
    for cells, row in zip(page.tables["differences"][1:], rows[1:], strict=True):
        gained = row["difference"]
        ends = f"{100 * gained['low']:+.1f} to {100 * gained['high']:+.1f}"
        numbers = [f"{gained['p']:.3f}", f"{gained['p_holm']:.3f}"]
        expected = [row["setting"], "4", f"{100 * gained['mean']:+.1f}", ends, *numbers]
        assert [cell.replace("\N{MINUS SIGN}", "-") for cell in cells] == expected
    assert page.tables["parts"][0] == ["setting", "shoulder", "elbow", "wrist"]
    for cells, row in zip(page.tables["parts"][1:], rows, strict=True):
        means = [percent(row["parts"][name]["mean"]) for name in ("shoulder", "elbow", "wrist")]
        assert [cell.split(" ± ")[0] for cell in cells[1:]] == means
    assert [cells[3] for cells in page.tables["runs"][1:]] == [percent(value) for of in SCORES.values() for value in of]


def test_json_has_the_difference_that_scipy_finds(sweep: Path) -> None:
    from scipy import stats

    rows = compare(settings_of([sweep]), "fedavg")
    assert rows[0]["difference"] is None
    found = rows[1]["difference"]
    assert found["baseline"] == "FedAvg" and found["pairs"] == 4
    assert found["p"] == pytest.approx(stats.ttest_rel(SCORES["fedgh"], SCORES["fedavg"]).pvalue)
    assert found["mean"] == pytest.approx(0.0425)


def test_markdown_says_the_same(sweep: Path) -> None:
    text = (sweep / "report.md").read_text()
    for section, rows in page_of(sweep).tables.items():
        for cells in rows[1:]:
            wanted = cells if section != "runs" else cells[:6]
            pattern = r" \| ".join(rf"(\*\*)?`?{re.escape(cell)}`?(\*\*)?" for cell in wanted)
            assert re.search(rf"^\| {pattern} \|", text, re.MULTILINE), cells
    drawn = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert sorted(drawn) == sorted(f"report-figures/{file.name}" for file in (sweep / "report-figures").iterdir())
    assert len(drawn) == 2 + 2 + 6  # outcomes, differences; two curves; two matrices a setting


def test_it_tells_of_failed_jobs_rejected_replies_and_how_to_have_it_again(sweep: Path) -> None:
    page = page_of(sweep)
    assert page.tables["rejected"][1:] == [["FedAvg", "1", "2", "3", "update not finite"]]
    assert [cells[0] for cells in page.tables["jobs"][1:]] == ["4", "9", "14"]
    assert page.tables["jobs"][1][1:] == [
        "strategy=fedavg seed=4",
        "failed",
        "round 2: 0 good replies, expected at least 1",
        "4.log",
    ]
    for words in (
        "12 of 15 jobs completed",
        f"fedgh run -m resume={sweep}",
        "fedgh run -m strategy=fedavg,fedgh,krum seed=0,1,2,3,4 rounds=5 runtime=inprocess tracking=none",
        f"fedgh report {sweep} --baseline FedAvg",
        "With 4 pairs these tests can tell little",
        "adjusted for 2 comparisons",
        "flwr 1.",
    ):
        assert words in page.text, words


def test_it_loads_nothing_and_can_be_read_by_everybody(sweep: Path) -> None:
    page = page_of(sweep)
    text = (sweep / "report.html").read_text()
    addresses = [found.get(key) for _, found in page.tags for key in ("src", "href") if key in found]
    assert all(str(address).startswith(("data:", "#")) for address in addresses)
    assert not re.findall(r"url\(|@import|<script|http-equiv=\"refresh", text)
    assert page.all("html") == [{"lang": "en"}]
    images = page.all("img")
    assert len(images) == 10
    assert all(len(str(image["alt"])) > 40 and int(str(image["width"])) > 200 for image in images)
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    links = [str(found["href"]).removeprefix("#") for found in page.all("a")]
    assert links and set(links) <= set(ids)
    assert all(found.get("aria-label") for found in page.all("div") if found.get("role") == "region")
    assert max(map(len, links)) < 20 and len(text) < 800_000


def test_what_somebody_else_wrote_is_text(tmp_path: Path) -> None:
    folder = make(tmp_path / "sweep", {"fedavg": (0.5, 0.6)}, failed=False)
    result = storage.read_json(folder / "0" / "result.json")
    result["rejected"] = [{"round": 1, "client": BREAK, "reason": f"{BREAK}\nsecond line"}]
    result["parts"] = {BREAK: 0.5}
    result |= {"more": {BREAK: 0.5}, "part": BREAK, "metric": BREAK}
    storage.write_json(folder / "0" / "result.json", result)
    tracking = {"mode": "online", "url": "javascript:alert(1)", "folder": "w", "sync": None}
    storage.write_json(folder / "0" / "tracking.json", tracking)
    write(settings_of([folder]), [folder], folder, "fedavg")
    page = page_of(folder)
    assert page.all("script") == [] and "javascript" not in (folder / "report.html").read_text()
    assert page.tables["rejected"][1][3] == BREAK
    text = (folder / "report.md").read_text()
    assert "<script" not in text
    row = next(line for line in text.splitlines() if "second line" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 6


def test_what_privacy_was_spent_is_in_the_results(tmp_path: Path) -> None:
    folder = make(tmp_path / "sweep", {"fedavg": (0.5, 0.6), "krum": (0.4,)}, failed=False)
    for run_directory, epsilon in (("0", 3.1234), ("1", 3.5)):
        file = folder / run_directory / "result.json"
        storage.write_json(file, storage.read_json(file) | {"privacy": {"epsilon": epsilon}})
    settings = settings_of([folder])
    assert [row["epsilon"] for row in compare(settings)] == [3.5, None]
    write(settings, [folder], folder)
    assert [cells[8] for cells in page_of(folder).tables["results"]] == ["privacy ε", "3.5", "\N{EN DASH}"]
    assert "| rejected replies | privacy ε |\n" in (folder / "report.md").read_text()


def test_without_a_baseline_nothing_is_tested_and_it_says_how(tmp_path: Path) -> None:
    folder = make(tmp_path / "sweep", {"fedavg": (0.5,), "krum": (0.6,)}, failed=False)
    settings = settings_of([folder])
    write(settings, [folder], tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert "differences" not in page.tables
    assert f"fedgh report {folder} --baseline FedAvg" in page.text
    assert "None: all 2 completed." in page.text
    assert "±" not in "".join(page.tables["results"][1])  # one run has no deviation
    assert "standard deviation to each side" not in page.text
    write(settings, [folder], tmp_path / "out", "krum")
    assert page_of(tmp_path / "out").tables["differences"][1] == [
        "FedAvg",
        "1",
        "\N{MINUS SIGN}10.0",
        *["\N{EN DASH}"] * 3,
    ]


@pytest.mark.parametrize(("name", "words"), [("fedprox", "names no setting"), ("", "names more than one setting")])
def test_a_baseline_that_names_no_one_setting_is_one_line(sweep: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"--baseline {name}: {words}; expected one of 'FedAvg', 'FedGH', 'Krum'"):
        compare(settings_of([sweep]), name)


def test_a_seed_that_was_run_twice_has_no_one_partner(tmp_path: Path) -> None:
    folder = make(tmp_path / "sweep", {"fedavg": (0.5, 0.5, 0.5), "krum": (0.6, 0.7, 0.8)}, failed=False)
    config = OmegaConf.load(folder / "5" / "config.yaml")
    run(tmp_path / "again", config, 0.9, 2)
    row = compare(settings_of([folder, tmp_path / "again", folder / "5"]), "fedavg")[1]
    assert (row["runs"], row["difference"]["pairs"]) == (4, 2)
    assert row["difference"]["mean"] == pytest.approx(0.15)


def test_clients_that_were_trained_alone_have_neither_curves_nor_cosines(tmp_path: Path) -> None:
    folder = make(tmp_path / "sweep", {"fedavg": (0.5,)}, failed=False, more=["runtime=local"])
    (folder / "0" / "history.jsonl").unlink()
    write(settings_of([folder / "0"]), [folder / "0"], tmp_path / "out")
    page = page_of(tmp_path / "out")
    for words in ("No run has a history", "No strategy of these runs reports cosines", "not recorded"):
        assert words in page.text
    assert len(page.all("img")) == 1


def test_where_nobody_may_write_is_one_line(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*file/out: cannot write there \(Not a directory\)"):
        write(settings_of([sweep])[:1], [sweep], tmp_path / "file" / "out")


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "sweep", {"fedavg": (0.5, 0.6)}, failed=False)
    (folder / "1" / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"sweep/1/result\.json: metric: "):
        settings_of([folder])
    (folder / "1" / "result.json").write_bytes((folder / "0" / "result.json").read_bytes())
    (folder / "0" / "history.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"sweep/0/history\.jsonl: round: "):
        write(settings_of([folder]), [folder], folder)
    assert not (folder / "report.html").exists()


def test_curves_are_means_over_the_runs(sweep: Path) -> None:
    curve = report_figures.curve_of(settings_of([sweep])[0])
    assert curve is not None and curve.rounds.tolist() == [0, 1, 2, 3, 4, 5]
    reached = np.array(SCORES["fedavg"]) * (1 - 0.5**2)
    assert curve.mean[2] == pytest.approx(reached.mean())
    assert curve.std[2] == pytest.approx(reached.std(ddof=1))
    assert curve.seconds[2] == pytest.approx(3 * np.mean([10, 11, 12, 13]))


def test_cosines_are_means_over_rounds_and_runs_by_client(tmp_path: Path) -> None:
    config = compose_config(["strategy=fedavg", "rounds=2"])
    for number, labels in enumerate((["0", "1"], ["0", "1"])):
        run(tmp_path / str(number), config, 0.5, number)
        (tmp_path / str(number) / "history.jsonl").unlink()
        for server_round, cosine in ((1, 0.1), (2, 0.3)):
            # The second round has two updates of client 0, which do not count as a pair of clients.
            names = labels if server_round == 1 else [*labels, "0#2"]
            matrix = [[1.0 if i == j else cosine + number / 2 for j in names] for i in names]
            strategy = {"clients": names, "cosines": matrix}
            line = {"round": server_round, "evaluate": {}, "seconds": {}, "strategy": strategy}
            storage.append_line(tmp_path / str(number) / "history.jsonl", line)
    found = report_figures.cosines_of(settings_of([tmp_path])[0])
    assert found is not None
    assert found.labels == ("front", "left")
    assert np.isnan(np.diag(found.mean)).all()
    assert found.last[0, 1] == pytest.approx((0.3 + 0.8) / 2)
    assert found.mean[1, 0] == pytest.approx(np.mean([0.1, 0.3, 0.3, 0.6, 0.8, 0.8]))


def test_beyond_eight_settings_the_best_and_the_baseline_are_drawn(sweep: Path, tmp_path: Path) -> None:
    from fedgh_app.reports.content import _shown

    runs = settings_of([sweep])[0].runs
    many = [Setting(f"s{i}", (runs[i % 4],)) for i in range(10)]
    many[9] = Setting("worst", (settings_of([sweep])[2].runs[2],))
    shown = _shown(many, many[9])
    assert len(shown) == 8 and many[9] in shown
    assert many[9] not in _shown(many, None)


def test_the_same_figure_is_the_same_text(sweep: Path) -> None:
    settings = settings_of([sweep])
    first, second = (report_figures.svg(report_figures.outcomes(settings, "PCK@0.2")) for _ in range(2))
    assert first == second and first.startswith("<?xml")
