"""What a model card says of a network that finds keypoints."""

from collections.abc import Mapping, Sequence

from fedgh_app.pose.data.records import DatasetSpec
from fedgh_app.resources import Values
from fedgh_app.vision.card import Card
from fedgh_app.words import count

REFERENCES = {
    "box": "the longest side of the person's box",
    "torso": "the length of the person's torso, left shoulder to right hip",
    "head": "the length of the person's head, 0.6 x the diagonal of its box",
}
HEADS = {"heatmap": "heatmaps", "integral": "the expectation of implicit heatmaps"}
USAGE = (
    "```",
    "fedgh predict RUN photo.jpg folder/ clip.mp4 --out found    # skeletons, and keypoints as JSON",
    "fedgh export RUN --format onnx                              # for machines without PyTorch",
    "```",
    "",
    "```python",
    "from fedgh_app.runs.opening import load_run",
    'run = load_run("RUN")  # run.model: images (N, 3, h, w) to maps; run.spec.keypoints: their names',
    "```",
)
LIMITS = (
    "The numbers above are for one person at a time, in a true box. A detector's boxes, and whole images "
    "without boxes, give worse keypoints.",
)


def card(values: Values, specs: Mapping[str, DatasetSpec]) -> Card:
    """What is told of a run with these values of its config, on these data sets by name."""
    return Card(_what(values, specs), USAGE, (*_metrics([*specs.values()]), _reading(values)), LIMITS)


def _what(values: Values, specs: Mapping[str, DatasetSpec]) -> str:
    model, dataset = values["model"], values["dataset"]
    height, width = next(iter(dataset.get("members", {"": dataset}).values()))["input_size"]
    keypoints = dict.fromkeys(name for spec in specs.values() for name in spec.keypoints)
    head = HEADS.get(str(model.get("head", "heatmap")), "heatmaps")
    return (
        f"A network ({model.get('backbone', model['_target_'])}, keypoints by {head}) that finds "
        f"{count(len(keypoints), 'keypoint')} of one person in a crop of {width} x {height} pixels around the person's "
        "box."
    )


def _metrics(specs: Sequence[DatasetSpec]) -> list[str]:
    """How each metric is defined; of data sets that share one, by the first."""
    unlike = {(spec.headline, spec.reference): spec for spec in reversed(specs)}.values()
    return [
        f"{spec.headline} is the share of labelled keypoints that lie within {spec.thresholds[0]:g} x "
        f"{REFERENCES[spec.reference]} of the truth{f' (on {spec.name})' if len(unlike) > 1 else ''}; the headline is "
        "the mean over keypoints."
        for spec in unlike
    ]


def _reading(values: Values) -> str:
    evaluate = values["evaluate"]
    integral = values["model"].get("head") == "integral"
    read = "by their expectation" if integral else f"by `{evaluate.get('decoding', 'quarter')}`"
    flip = ", each image also mirrored" if evaluate.get("flip_test") else ""
    return f"Keypoints were read off the maps {read}{flip}; people were cropped by their true boxes."
