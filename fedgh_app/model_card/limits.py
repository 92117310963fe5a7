"""What a model is not good for, as far as the numbers of its run tell."""

from collections.abc import Iterator

from fedgh_app.errors import abbreviated
from fedgh_app.model_card.facts import Facts
from fedgh_app.runs.history import scored
from fedgh_app.words import count, percent, plural

# Below this headline a part is called weak; this far below the mean is a client's; so few test images say little; and
# by as much the last round may gain if training is to count as at its end.
WEAK, CLIENT_GAP, FEW_IMAGES, STILL_RISING = 0.7, 0.1, 100, 0.01


def limits(run: Facts) -> Iterator[str]:
    """The section, as lines."""
    yield from ("## Limits", "")
    sections = (_of_data(run), run.card.limits, _of_parts(run), _of_clients(run), _of_training(run))
    yield from (f"- {line}" for section in sections for line in section)
    yield "- Not tested for any use in which a wrong prediction can hurt somebody."


def _of_data(run: Facts) -> Iterator[str]:
    titles = "; ".join(spec.title for spec in run.specs.values())
    yield f"It was trained and tested on this alone: {titles}. Nothing else was tried."
    if all(spec.source == "generated" for spec in run.specs.values()):
        yield "Those images are drawn by a program; it has never seen a photograph."
    for spec in run.specs.values():
        if "no restriction" not in spec.licence:
            yield f"The data are licensed for: {spec.licence}. That binds whoever uses or passes on this model."


def _of_parts(run: Facts) -> Iterator[str]:
    result = run.result
    weak = {name: score for name, score in result.parts.items() if score is not None and score < WEAK}
    if len(weak) == len(result.parts) > 1:
        yield f"Every {result.part} is weak: {result.metric} below {percent(WEAK)}."
    elif weak:
        worst_first = sorted(weak.items(), key=lambda pair: pair[1])
        named = ", ".join(f"{name} ({percent(score)})" for name, score in worst_first)
        yield f"Weak {plural(result.part)}, by {result.metric}: {named}."
    unknown = [name for name, score in result.parts.items() if score is None]
    if unknown:
        yield f"Not measured, for want of labelled test images: {', '.join(unknown)}."


def _of_clients(run: Facts) -> Iterator[str]:
    worst, score = run.worst(), run.result.score
    if worst and score is not None and score - worst[1] > CLIENT_GAP:
        yield (
            f"It does not serve all clients alike: {run.client(worst[0])} has {percent(worst[1])}, where all "
            f"together have {percent(score)}."
        )
    clients = run.result.clients
    tests = sum(client.test_examples for client in clients.values())
    if tests < FEW_IMAGES:
        yield f"{count(tests, 'test image')}: the numbers are rough."
    untested = [run.client(name) for name, client in clients.items() if not client.test_examples]
    if untested:
        yield f"Without test images of their own: {abbreviated(untested)}."


def _of_training(run: Facts) -> Iterator[str]:
    measured = [*scored(run.history).values()]
    if len(measured) > 1 and measured[-1] - measured[-2] > STILL_RISING:
        yield (
            f"Training was not at its end: the last evaluation before had {percent(measured[-2])}, the last has "
            f"{percent(measured[-1])}."
        )
    if rejected := len(run.result.rejected):
        yield f"Replies of clients that were rejected: {rejected}; `history.jsonl` says why."
    yield "One run with one seed; another seed gives other numbers."
    if not run.alone:
        yield _privacy(run)


def _privacy(run: Facts) -> str:
    spent = run.result.privacy
    if not spent:
        return (
            "Updates reached the server as they are, without secure aggregation or differential privacy: the "
            "model may tell something of the images it was trained on."
        )
    guarantee = (
        f"ε = {spent['epsilon']:.3g} at δ = {spent['delta']:g} for a client with all its images, over "
        f"{count(int(spent['releases'] or 0), 'update')} of it"
    )
    if run.values["privacy"]["name"] == "local":
        return (
            f"Local differential privacy: {guarantee}. Every client's updates had noise before they left it; its "
            "counts and losses had not."
        )
    return (
        f"Central differential privacy: {guarantee}. It covers the model, not `history.jsonl` and `result.json`; "
        "the server saw the updates as they are."
    )
