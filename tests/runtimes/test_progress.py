from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from fedgh_app.runs import storage
from fedgh_app.runs.history import Evaluations, Measured, Rejected, Round
from fedgh_app.runs.result import ClientFacts, Durations, Result
from fedgh_app.runtimes.progress import Display, print_result


def display_of(directory: Path, said: StringIO) -> Display:
    display = Display(directory, title="FedGH on arm", rounds=5, metric="PCK@0.2", quiet=True)
    display.console = Console(file=said, width=200)
    return display


def shown(directory: Path, *rounds: Round) -> list[str]:
    said = StringIO()
    display = display_of(directory, said)
    for one in rounds:
        storage.append_line(directory / "history.jsonl", one.model_dump())
    display.update()
    return said.getvalue().splitlines()


def test_a_line_a_round(tmp_path: Path) -> None:
    evaluate = Evaluations(central=Measured(score=0.5))
    plain = Round(round=1, train={"loss": 2.0}, evaluate=evaluate, seconds={"total": 3.0})
    conflicts = {"conflicting": 0.5, "conflicting_per_tensor": {"a": 0.0, "b": 1.0}}
    lines = shown(tmp_path, Round(round=0), plain, Round(round=2, strategy=conflicts))
    assert lines == [
        "round   0",
        "round   1  loss 2.0000  PCK  50.0 %  3.0 s",
        "round   2  50 % of pairs in conflict (50 % by tensor)",
    ]


def test_a_line_that_is_still_being_written_waits_and_a_resumed_history_is_not_told_again(tmp_path: Path) -> None:
    said, history = StringIO(), tmp_path / "history.jsonl"
    display = display_of(tmp_path, said)

    def told() -> list[str]:
        said.seek(0)
        said.truncate()
        display.update()
        return [line.split()[1] for line in said.getvalue().splitlines()]

    assert told() == []
    lines = [storage.line(Round(round=number).model_dump()) for number in range(5)]
    history.write_text(lines[0] + lines[1] + lines[2][:9])
    assert told() == ["0", "1"]
    history.write_text("".join(lines[:4]))
    assert (told(), told()) == (["2", "3"], [])
    with storage.replacing(history) as draft:  # taken up after round 2
        draft.write_text("".join(lines[:3]))
    assert told() == []
    storage.append_line(history, Round(round=3).model_dump())
    assert told() == ["3"]


def test_late_updates_clusters_and_rejections_are_told(tmp_path: Path) -> None:
    late = Round(round=1, strategy={"staleness": {"0": 0, "0#2": 3}, "dropped": 2})
    clusters = Round(round=2, clusters={"0": ["0"], "1": ["1", "2"]})
    rejected = Round(round=3, rejected=[Rejected(round=3, client="1", reason="out [of] memory")])
    assert shown(tmp_path, late, clusters, rejected) == [
        "round   1  staleness up to 3  2 dropped as too stale",
        "round   2  2 clusters",
        "round   3  rejected 1: out [of] memory",
    ]


RESULT = Result(
    metric="PCKh@0.5",
    part="keypoint",
    score=0.75,
    parts={"elbow": 0.5, "knee": None},
    before={"elbow": 0.25},
    evaluated="clients",
    rounds=2,
    seconds=Durations(rounds=7.0),
    rejected=[],
    clients={
        "0": ClientFacts(label="arm front", examples=5, test_examples=2),
        "1": ClientFacts(label="lspet", examples=9, test_examples=2),
    },
    clients_score={"0": 0.5, "1": None},
)


def test_of_many_clients_the_result_shows_the_worst(tmp_path: Path) -> None:
    clients = {str(n): ClientFacts(label=f"lab-{n}", examples=5, test_examples=2) for n in range(400)}
    measured = {name: (int(name) * 7 % 400) / 400 for name in clients}
    said = StringIO()
    many = RESULT.model_copy(update={"clients": clients, "clients_score": {**measured, "3": None}})
    print_result(many, tmp_path, Console(file=said, width=120))
    told = said.getvalue()
    worst = sorted((name for name in measured if name != "3"), key=lambda name: measured[name])
    assert all(f"lab-{name} " in told for name in worst[:24]) and f"lab-{worst[24]} " not in told
    assert "the worst 24 of 400" in " ".join(told.split()) and len(told.splitlines()) < 60


def test_the_result_names_its_metric(tmp_path: Path) -> None:
    said = StringIO()
    print_result(RESULT, tmp_path, Console(file=said, width=120))
    told = " ".join(said.getvalue().split())
    table = "PCKh@0.5 on the clients' own test images"
    for words in (table, "keypoint", "┃ PCKh ┃", "elbow", "25.0", "75.0", "arm front", "2 in 7 s"):
        assert words in told


def test_the_result_names_who_was_rejected_when_and_why(tmp_path: Path) -> None:
    reason = "array w holds NaN or infinity"
    rejected = [Rejected(round=n, client="lab [a]", reason=reason) for n in (1, 3)]
    rejected.append(Rejected(round=2, client="clinic", reason="no reply within the time it had"))
    result = RESULT.model_copy(update={"score": None, "parts": {}, "rejected": rejected})
    said = StringIO()
    print_result(result, tmp_path, Console(file=said, width=120))
    told = " ".join(said.getvalue().split())
    assert "lab [a] │ 1, 3 │ array w holds NaN or infinity" in told
    assert "clinic │ 2 │ no reply within the time it had" in told
    assert "rejected replies: 3" in told


def test_a_line_names_who_was_not_asked(tmp_path: Path) -> None:
    away = Round(round=2, absent={"lab": "its node is not connected"})
    assert shown(tmp_path, away) == ["round   2  not asked lab: its node is not connected"]
