"""What looking through a reply costs: the whole of it, with the norm of its update, beside a test for NaN and infinity.

Both read the same replies in turns, so that a busy machine slows both alike; the ratio is the median of those of each
turn.

    python -m benchmarks.screening [--json FILE]
"""

import statistics
import time
from collections.abc import Callable

import torch
from flwr.app import Message, RecordDict

from benchmarks import output
from benchmarks.aggregation import MODELS, Round
from fedgh_app.grids.reply_checks import examine, finite


def measure(model: str, clients: int, repeats: int) -> dict[str, float]:
    """Median milliseconds for one reply of ``examine`` and of ``finite``, and their ratio."""
    held = Round(MODELS[model], clients)
    asked = Message(RecordDict({"arrays": held.sent}), 1, "train")
    replies = [reply.content["arrays"] for reply in held.replies]

    def examined() -> None:
        for reply in held.replies:
            assert examine(asked, reply).fault is None

    def tested() -> None:
        assert not any(finite(arrays) for arrays in replies)

    found = [(milliseconds(examined) / clients, milliseconds(tested) / clients) for _ in range(repeats)]
    return {
        "examine": statistics.median(one for one, _ in found),
        "finite": statistics.median(other for _, other in found),
        "ratio": statistics.median(one / other for one, other in found),
    }


def milliseconds(call: Callable[[], None]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = output.parser("screening", __doc__)
    parser.add_argument("--clients", type=int, default=4, help="replies in one turn, more than the caches hold")
    parser.add_argument("--repeats", type=int, default=9)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = {model: measure(model, chosen.clients, chosen.repeats) for model in MODELS}
    headings = ("parameters", "examine, with norms", "finite alone", "ratio")
    table = output.empty_table("One reply, milliseconds on one core", headings)
    for model, row in found.items():
        table.add_row(model, f"{row['examine']:.1f}", f"{row['finite']:.1f}", f"{row['ratio']:.2f}")
    output.show(chosen.json, found, table)


if __name__ == "__main__":
    main()
