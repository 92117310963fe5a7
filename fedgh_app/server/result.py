"""What a federation came to."""

from fedgh_app.runs.history import Evaluations
from fedgh_app.runs.result import ClientFacts, Durations, Result
from fedgh_app.server.federation import Federation


def result_of(federation: Federation) -> Result:
    """What ``result.json`` says of a run, as far as it came.

    The headline is central where the server saw test images, else the clients' own.
    """
    history = federation.history
    last = history[-1].evaluate if history else Evaluations()
    headline = last.headline
    by_client = last.clients.by_client if last.clients else {}
    clients_score = {name: measured.score for name, measured in by_client.items()}
    return Result(
        metric=federation.data.headline,
        score=headline.score,
        parts=headline.parts,
        before=history[0].evaluate.headline.parts if history else {},
        more=headline.more,
        evaluated="central" if last.central else "clients",
        rounds=history[-1].round if history else 0,
        seconds=Durations(**federation.seconds()),
        rejected=[item for current in history for item in current.rejected],
        clients={
            name: ClientFacts(label=info.label, examples=info.examples, test_examples=info.test_examples)
            for name, info in federation.clients.items()
        },
        clients_score=clients_score,
        privacy=history[-1].privacy if history else {},
        dataset=federation.data.name,
        part=federation.task.part,
        **federation.task.result(headline, clients_score),
    )
